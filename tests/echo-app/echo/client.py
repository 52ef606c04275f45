"""Sends the array back, with what the process knows of itself."""

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
