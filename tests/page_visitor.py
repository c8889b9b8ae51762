"""Somebody who uses the page over HTTP, without a browser."""

import json
from uuid import uuid4

import httpx

USER, PASSWORD = "ann", "open sesame"
SECONDS = 400  # for what takes a few where nothing else runs


class Visitor:
    """A browser without eyes: one session, its cookies, and the page's functions by name."""

    def __init__(self, url, config=None):
        self.http = httpx.Client(base_url=url, timeout=SECONDS)
        self.session = uuid4().hex
        self._config = config

    def log_in(self, password=PASSWORD):
        return self.http.post("/login", data={"username": USER, "password": password}).status_code

    @property
    def config(self):
        self._config = self._config or self.http.get("/config").json()
        return self._config

    def function(self, name):
        return next(one for one in self.config["dependencies"] if one["api_name"] == name)

    def component(self, label, kind=None):
        """The id of the component of this label."""
        return next(
            c["id"]
            for c in self.config["components"]
            if c["props"].get("label") == label and kind in (None, c["type"])
        )

    def values(self, name, **given):
        """The inputs of a function as the page shows them first; `given`: label -> value."""
        parts = {c["id"]: c for c in self.config["components"]}
        by_id = {self.component(label): value for label, value in given.items()}
        return [by_id.get(i, parts[i]["props"].get("value")) for i in self.function(name)["inputs"]]

    def join(self, name, data, event=None):
        body = {
            "data": data, "fn_index": self.function(name)["id"], "session_hash": self.session,
            "event_data": event, "trigger_id": None,
        }  # fmt: skip
        return self.http.post("/gradio_api/queue/join", json=body)

    def press(self, name, data, event=None):
        """What the queue says until the function is done: its messages; the last one has the outcome."""
        answer = self.join(name, data, event)
        assert answer.status_code == 200, answer.text
        messages = []
        with self.http.stream(
            "GET", "/gradio_api/queue/data", params={"session_hash": self.session}
        ) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    messages.append(json.loads(line.removeprefix("data:")))
                    if messages[-1]["msg"] == "process_completed":
                        return messages
        raise AssertionError(messages)

    def ask(self, name, data):
        """A function that is not queued."""
        body = {"data": data, "fn_index": self.function(name)["id"], "session_hash": self.session}
        return self.http.post(f"/gradio_api/run/{name}", json=body)

    def upload(self, name, content):
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return answer.json()[0]


def file_at(path):
    return {"path": path, "orig_name": "x.png", "meta": {"_type": "gradio.FileData"}}


def alerts_in(messages):
    """What is told as a mistake, in its place; nothing is said anywhere else."""
    assert [message for message in messages if message["msg"] == "log"] == []
    return [said for said in outcome(messages) if str(said).startswith('<div role="alert"')]


def outcome(messages):
    assert messages[-1]["success"], messages[-1]
    return messages[-1]["output"]["data"]
