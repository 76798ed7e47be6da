"""agent/writers/standstill.py: which processes of a control group are a server's own."""

from __future__ import annotations

import os
import subprocess

from quiesce.agent.writers import standstill


def test_a_process_is_a_servers_own_if_it_descends_from_it(monkeypatch):
    """Broken: a server's neighbours in its control group, as a shell that started it, would stand still with it and nobody
    would know."""
    own = os.getpid()
    with subprocess.Popen(["sleep", "60"]) as child:
        monkeypatch.setattr(standstill, "_members", lambda _: {own, child.pid})
        group = standstill.Standstill.__new__(standstill.Standstill)
        group._cgroup = standstill.Cgroup("/x")
        group._pid = own
        assert group.others() == []
        group._pid = child.pid
        assert group.others() == [own]
        monkeypatch.setattr(standstill, "_members", lambda _: {1, child.pid})
        assert group.others() == [1]
        child.kill()


def test_a_process_that_ended_is_in_nobodys_way(monkeypatch):
    """Broken: a backend that ends while the group is looked at would keep its server from standing still."""
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    monkeypatch.setattr(standstill, "_members", lambda _: {gone.pid})
    group = standstill.Standstill.__new__(standstill.Standstill)
    group._cgroup = standstill.Cgroup("/x")
    group._pid = os.getpid()
    assert group.others() == []
