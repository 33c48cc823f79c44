import pytest

from wiseft_dist import storage
from wiseft_dist.errors import UserError
from wiseft_dist.storage.urls import without_secrets


def test_paths_are_made_absolute_and_urls_are_left_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("a/b") == storage.absolute(f"file://{tmp_path}/a/b") == f"{tmp_path}/a/b"
    for url in ("s3://bucket/a", "https://host/a", "hf-hub:org/model"):
        assert storage.absolute(url) == url


def test_names_and_folders_are_joined_and_parted():
    assert storage.join("s3://bucket/a/", "b") == "s3://bucket/a/b"
    assert storage.parent("s3://bucket/a/b/") == "s3://bucket/a"


@pytest.mark.parametrize(
    "url",
    [
        "https://me:sesame@host/0.tar",
        "s3://id:sesame@bucket/{0..3}.tar",
        "https://host/0.tar?X-Amz-Algorithm=AWS4&X-Amz-Signature=sesame",
        "https://account.blob.core.windows.net/c/0.tar?sv=2022&sig=sesame",
        "https://host/0.tar?token=sesame",
        "https://host/0.tar?a=b&access_token=sesame",
        "s3://bucket/0.tar?AWSAccessKeyId=me&Signature=sesame",
    ],
)
def test_a_url_with_credentials_is_refused_without_repeating_them(url):
    for attempt in (storage.refuse_credentials, storage.list_shards, storage.read_bytes):
        with pytest.raises(UserError, match="this URL carries credentials") as caught:
            attempt(url)
        assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["/a/b?token=x.tar", "s3://bucket/00?.tar", "https://host:8080/a/{0..3}.tar", "gs://bucket/key=1/0.tar"]
)
def test_a_url_without_credentials_is_let_through(url):
    storage.refuse_credentials(url)


def test_text_loses_passwords_and_queries_and_nothing_else():
    text = "GET https://me:sesame@host/a/b?list=2&sig=sesame in 3 ms (try http://other/c)"
    assert without_secrets(text) == "GET https://host/a/b in 3 ms (try http://other/c)"
