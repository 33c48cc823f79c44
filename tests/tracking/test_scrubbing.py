"""What leaves for W&B tells nothing of people and machines."""

from __future__ import annotations

import socket

import pytest

from wiseft_dist.tracking import scrubbing
from wiseft_dist.tracking.scrubbing import hide_hosts_of, scrubbed, scrubbed_tree


@pytest.fixture(autouse=True)
def somebody(monkeypatch):
    monkeypatch.setenv("HOME", "/data/people/carol")
    monkeypatch.setenv("LOGNAME", "carol")
    monkeypatch.setenv("SOME_API_KEY", "0123456789")
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent.1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/K7MDENGbPxRfiCY+EXAMPLE")
    monkeypatch.setenv("AUTH_FOLDER", "/usr/bin")
    monkeypatch.setenv("SLURMD_NODENAME", "rack1-7")
    monkeypatch.setattr(scrubbing, "_OTHER_HOSTS", {})
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
        ("/tmp/agent.1 is in /usr/bin", "/tmp/agent.1 is in /usr/bin"),
        ("AWS: /K7MDENGbPxRfiCY+EXAMPLE", "AWS: ***"),
        ("rack1-7 and gpu08", "HOST and gpu08"),
        ("monkey: banana; key: 3", "monkey: banana; key: 3"),
    ],
)
def test_homes_names_hosts_and_secrets_go_and_the_rest_stays(text, shown):
    assert scrubbed(text) == shown


def test_all_texts_of_a_tree_are_scrubbed_and_its_names_stay():
    tree = {"carol": {"gpu07": ["/home/alice/x", 1, None, True, 0.5]}, "/home/alice/y": "gpu07"}
    assert scrubbed_tree(tree) == {"carol": {"gpu07": ["~/x", 1, None, True, 0.5]}, "~/y": "HOST"}


def test_machines_that_the_events_tell_of_are_cut_too():
    for event in (
        {"event": "attempt", "host": "gpu08.cluster.example.org"},
        {"event": "attempt"},
        {"event": "preflight", "nodes": ["gpu09", "gpu10"]},
        {"event": "metrics", "host": "loss"},
    ):
        hide_hosts_of(event)
    assert scrubbed("gpu08 (rank 3), gpu09, gpu10 and gpu11: no loss") == "HOST (rank 3), HOST, HOST and gpu11: no loss"
