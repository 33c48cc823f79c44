"""What leaves for W&B tells nothing of people and machines."""

from __future__ import annotations

import socket

import pytest

from wiseft_dist.tracking import scrubbing
from wiseft_dist.tracking.scrubbing import scrubbed, scrubbed_tree


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    monkeypatch.setenv("HOME", "/data/people/carol")
    monkeypatch.setenv("LOGNAME", "carol")
    monkeypatch.setenv("SOME_API_KEY", "0123456789")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent.1")
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu07.cluster.example.org")
    for cached in (scrubbing._hosts, scrubbing._user):
        cached.cache_clear()
    yield
    for cached in (scrubbing._hosts, scrubbing._user):
        cached.cache_clear()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/alice/data/train", "~/data/train"),
        ("file /Users/alice: none", "file ~: none"),
        ("/root/run", "~/run"),
        ("/data/people/carol/run and /data/people/carol", "~/run and ~"),
        ("/data/people/caroline/run", "/data/people/caroline/run"),
        ("/scratch/carol/run", "/scratch/USER/run"),
        ("carol sings at /homely/places and /rooted", "carol sings at /homely/places and /rooted"),
        ("on gpu07.cluster.example.org or gpu07, not gpu070", "on HOST or HOST, not gpu070"),
        ("https://me:pw@example.org/x?sig=abc", "https://example.org/x"),
        ("WANDB_API_KEY=abcdef", "WANDB_API_KEY=***"),
        ('{"token": "abcdef"}', '{"token": "***"}'),
        ("Authorization: Bearer abc.def", "Authorization: Bearer ***"),
        ("the key 0123456789 is wrong", "the key *** is wrong"),
        ("/tmp/agent.1", "/tmp/agent.1"),
        ("monkey: banana; key: 3", "monkey: banana; key: 3"),
    ],
)
def test_homes_names_hosts_and_secrets_go_and_the_rest_stays(text, shown):
    assert scrubbed(text) == shown


def test_all_texts_of_a_tree_are_scrubbed_and_its_names_stay():
    tree = {"carol": {"gpu07": ["/home/alice/x", 1, None, True, 0.5]}, "/home/alice/y": "gpu07"}
    assert scrubbed_tree(tree) == {"carol": {"gpu07": ["~/x", 1, None, True, 0.5]}, "~/y": "HOST"}
