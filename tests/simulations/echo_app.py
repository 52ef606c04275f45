"""Writes a tiny Flower app: the sites send back what the server sends them."""

from pathlib import Path

_PYPROJECT = """\
[project]
name = "echo"
version = "1.0.0"

[tool.flwr.app]
publisher = "tests"
fab-include = ["echo/*.py"]

[tool.flwr.app.components]
serverapp = "echo.server:app"
clientapp = "echo.client:app"

[tool.flwr.app.config]
rounds = 2
sites = 2
fail = ""
result = ""
"""

_SERVER = """\
import json
import os
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    if config["fail"]:
        raise RuntimeError(config["fail"])
    nodes = []
    while len(nodes) < config["sites"]:
        nodes = list(grid.get_node_ids())
        time.sleep(0.1)
    sent = np.arange(500_000, dtype=np.float32)
    replies = []
    for number in range(1, config["rounds"] + 1):
        content = RecordDict({"arrays": ArrayRecord({"x": Array(sent)}),
                              "config": ConfigRecord({"round": number})})
        waiting = set(grid.push_messages(
            [Message(content, dst_node_id=node, message_type=MessageType.TRAIN) for node in nodes]))
        Path(config["result"]).with_suffix(".round").write_text(str(number))
        while waiting:
            for reply in grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                if reply.has_error():
                    raise RuntimeError(f"a site failed: {reply.error.reason}")
                same = bool((reply.content["arrays"]["x"].numpy() == sent).all())
                replies.append({"round": number, "same": same, **reply.content["config"]})
            time.sleep(0.05)
    result = {"replies": replies, "flwr_home": os.environ["FLWR_HOME"]}
    Path(config["result"]).write_text(json.dumps(result))
"""

_CLIENT = """\
import json
import os

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    answer = {"node": json.dumps(context.node_config), "environment": json.dumps(dict(os.environ))}
    content = RecordDict({"arrays": message.content["arrays"], "config": ConfigRecord(answer)})
    return Message(content, reply_to=message)
"""


def write_echo_app(folder: Path) -> Path:
    """Write the app into a new folder and return it."""
    (folder / "echo").mkdir(parents=True)
    (folder / "pyproject.toml").write_text(_PYPROJECT)
    (folder / "echo" / "__init__.py").touch()
    (folder / "echo" / "server.py").write_text(_SERVER)
    (folder / "echo" / "client.py").write_text(_CLIENT)
    return folder
