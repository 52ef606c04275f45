"""Flower's entry at a site: translates messages, and lets nothing else out.

No exception leaves this module: Flower would send its text, and whatever it says about patients'
data, to the server.
"""

import logging

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.site import site_folder
from fundusgen.errors import FederationError, SiteError
from fundusgen.federation.exchange import Answer, Refusal
from fundusgen.federation.messages import reply_to_record, request_from_record
from fundusgen.logs import log_to
from fundusgen.privacy.policy import RefusalReason
from fundusgen.training.answering import answer

app = ClientApp()
log = logging.getLogger("fundusgen.client")


@app.train("votes")
def vote(message: Message, context: Context) -> Message:
    """Answer a request of the `votes` stage."""
    return _answered(message, context)


@app.train("dpsgd")
def train(message: Message, context: Context) -> Message:
    """Answer a request of the `dpsgd` stage."""
    return _answered(message, context)


def _answered(message: Message, context: Context) -> Message:
    reply = Message(reply_to_record(_reply(message, context)), reply_to=message)
    # Flower notes to the microsecond when a reply is made, so how long the training took: it
    # depends on the patients. What the request says is sent back instead.
    reply.metadata.created_at = message.metadata.created_at
    reply.metadata.ttl = message.metadata.ttl
    return reply


def _reply(message: Message, context: Context) -> Answer | Refusal:
    try:
        site = site_folder(context.node_config)
    except SiteError as error:
        # There is no site to log to, so the operator's terminal it is. The text names a folder,
        # and nothing that was read in it.
        log.error("%s", error)
        return Refusal(RefusalReason.SITE_MISCONFIGURED)
    try:
        with log_to(site.log_file, "fundusgen.client"):
            try:
                return answer(site, request_from_record(message.content))
            except FederationError as error:
                log.error("the request was refused: %s", error)
                return Refusal(RefusalReason.REQUEST_MALFORMED)
            except Exception:
                log.exception("the request failed")
                return Refusal(RefusalReason.FAILED)
    except OSError:
        return Refusal(RefusalReason.SITE_MISCONFIGURED)
