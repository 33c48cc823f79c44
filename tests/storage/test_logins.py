"""Logins come from the environment and from the files made for them, and reach no other server."""

from __future__ import annotations

import pytest
from file_server import WithPassword, serve

from wiseft_dist import storage
from wiseft_dist.errors import UserError
from wiseft_dist.storage import stores


def test_a_web_servers_password_comes_from_netrc(served, tmp_path, monkeypatch):
    (served / "0.tar").write_bytes(b"content")
    netrc = tmp_path / "netrc"
    with serve(served, WithPassword) as url:
        with pytest.raises(UserError, match=rf"{url}/0\.tar: cannot be read: .*credentials.*401"):
            storage.read_bytes(f"{url}/0.tar")
        netrc.write_text("machine 127.0.0.1 login somebody password open-sesame\n")
        netrc.chmod(0o600)
        monkeypatch.setenv("NETRC", str(netrc))
        assert storage.read_bytes(f"{url}/0.tar") == b"content"
        netrc.write_text("machine elsewhere login somebody password open-sesame\n")
        monkeypatch.setenv("NETRC", f"{tmp_path}/./netrc")
        with pytest.raises(UserError, match="401") as caught:
            storage.read_bytes(f"{url}/0.tar")
        assert "sesame" not in str(caught.value)


def test_a_netrc_that_cannot_be_parsed_is_refused_without_quoting_it(tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 pasword open-sesame\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="netrc: line 1 cannot be parsed") as caught:
        storage.stat("http://127.0.0.1/0.tar")
    assert "sesame" not in str(caught.value)


def test_the_hub_token_goes_to_the_hub_alone():
    environment = {"HF_TOKEN": "hf_secret"}
    assert stores._login("https", "huggingface.co", environment) == {"Authorization": "Bearer hf_secret"}
    for scheme, host in (("http", "huggingface.co"), ("https", "huggingface.co.example.org"), ("https", "example.org")):
        assert stores._login(scheme, host, environment) == {}


def test_keys_of_the_environment_win_over_a_profile(tmp_path):
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id=a\naws_secret_access_key=b\nregion=eu-west-1\n")
    environment = {"AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials"), "AWS_CONFIG_FILE": str(tmp_path / "c")}
    assert stores._s3_config(environment) == {"region": "eu-west-1", "access_key_id": "a", "secret_access_key": "b"}
    assert stores._s3_config(environment | {"AWS_ACCESS_KEY_ID": "c"}) == {"region": "eu-west-1"}
    assert stores._s3_config(environment | {"AWS_SKIP_SIGNATURE": "true", "AWS_REGION": "x"}) == {"region": "x"}


def test_the_endpoint_of_s3_wins_over_that_of_all_services():
    environment = {"AWS_ENDPOINT_URL": "http://all", "AWS_ENDPOINT_URL_S3": "http://s3/", "AWS_ACCESS_KEY_ID": "a"}
    assert stores._s3_config(environment)["endpoint"] == "http://s3"


def test_a_credentials_file_that_cannot_be_parsed_is_refused_without_quoting_it(tmp_path, monkeypatch):
    (tmp_path / "credentials").write_text("aws_secret_access_key=open-sesame\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(UserError, match="credentials: cannot be parsed") as caught:
        storage.stat("s3://bucket/0.tar")
    assert "sesame" not in str(caught.value)


def test_an_unsigned_request_is_unsigned(served, monkeypatch):
    (served / "bucket").mkdir()
    (served / "bucket" / "0.tar").write_bytes(b"content")
    seen = []

    class Recording(WithPassword):
        def parse_request(self) -> bool:
            accepted = super(WithPassword, self).parse_request()
            seen.append(self.headers.get("Authorization"))
            return accepted

    with serve(served, Recording) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
        assert storage.read_bytes("s3://bucket/0.tar") == b"content"
    assert set(seen) == {None}
