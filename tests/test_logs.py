"""The log is JSON lines whatever a step brought, and a training that goes on drops what it will do again."""

import json

from concepts import logs


def test_a_number_that_is_none_is_null(tmp_path):
    log = logs.Log(tmp_path)
    log.write(step=1, grad_norm=float("inf"), loss=0.5)
    (line,) = (tmp_path / logs.NAME).read_text().splitlines()
    assert "Infinity" not in line and json.loads(line)["grad_norm"] is None
    log.rewind(1)
    assert logs.read(tmp_path / logs.NAME)[0]["loss"] == 0.5


made = []


class Board:
    def __init__(self, folder, purge_step=None):
        made.append(purge_step)

    def add_scalar(self, *_):
        pass

    def close(self):
        pass


def test_a_board_that_goes_on_hides_what_is_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "require_tensorboard", lambda: Board)
    with logs.opened(tmp_path, tensorboard=True) as log:
        log.write(step=3, loss=0.5)
        log.rewind(2)
    assert made[-1] == 3
