"""`Server.cancel` of the headless ComfyUI: it gets through when the first requests are dropped."""

import pytest

from testbed.server import Failed, Server

INTERRUPTED = {"messages": [["execution_interrupted", {"prompt_id": "1"}]]}


class Deaf(Server):
    """A server that drops its first `deaf` interrupts, as ComfyUI does before a graph has begun."""

    def __init__(self, deaf, ends_after=50):
        self.deaf, self.looks, self.ends_after, self.asked = deaf, 0, ends_after, []
        self.process = self

    def poll(self):
        return None

    def get(self, path):
        self.looks += 1
        if len(self.asked) > self.deaf:
            return {"1": {"status": INTERRUPTED}}
        if self.looks > self.ends_after:
            return {"1": {"status": {"completed": True}, "outputs": {"9": {}}}}
        return {}

    def post(self, path, body):
        self.asked.append((path, body))


@pytest.mark.parametrize("deaf", [0, 1, 3])
def test_a_cancel_asks_until_the_graph_has_ended(deaf):
    server = Deaf(deaf)
    with pytest.raises(Failed, match="interrupted"):
        server.cancel("1")
    assert server.asked == [("/interrupt", {"prompt_id": "1"})] * (deaf + 1)


def test_a_cancel_waits_for_its_moment():
    server = Deaf(0)
    with pytest.raises(Failed, match="interrupted"):
        server.cancel("1", when=lambda: server.looks >= 3)
    assert server.looks == 4 and len(server.asked) == 1


def test_a_graph_that_ended_first_gives_its_outputs():
    assert Deaf(9, ends_after=2).cancel("1", when=lambda: False) == {"9": {}}
