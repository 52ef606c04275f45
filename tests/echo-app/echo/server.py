"""Sends an array to every site, compares what comes back, writes what it saw to a file."""

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
        content = RecordDict(
            {"arrays": ArrayRecord({"x": Array(sent)}), "config": ConfigRecord({"round": number})}
        )
        waiting = set(
            grid.push_messages(
                [
                    Message(content, dst_node_id=node, message_type=MessageType.TRAIN)
                    for node in nodes
                ]
            )
        )
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
