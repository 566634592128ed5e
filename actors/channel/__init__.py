"""The direct channel: calls of an agent over one framed socket, without Ray.

Ray places, starts and limits agents; it does not carry calls. An agent listens with `ChannelServer`, a caller keeps one
`ChannelClient` open to it, and both speak length-prefixed frames (`frames.py`): many calls at once on one connection, each
with its grant, its deadline and, when it streams, credit for the chunks that it may be sent.

What always holds:
- No frame reaches the handler before its grant is verified; a refusal is reported to `on_refusal`.
- Bodies are opaque bytes or msgpack. Nothing here can unpickle.
- Frames, calls, connections, chunks under way and unsent bytes have bounds; everything that waits has a deadline.
- A peer that breaks the protocol loses its connection and hears why; the process and its other connections go on.
- A lost connection ends every call on it at once: at the caller with AgentLostError, at the agent by cancellation.
"""

from actors.channel.call_stream import CallStream
from actors.channel.client import ChannelClient
from actors.channel.frames import FLAG_STREAM, Frame, FrameDecoder, FrameType, encode
from actors.channel.incoming_call import Handler, IncomingCall
from actors.channel.server import ChannelServer

__all__ = [
    "FLAG_STREAM",
    "CallStream",
    "ChannelClient",
    "ChannelServer",
    "Frame",
    "FrameDecoder",
    "FrameType",
    "Handler",
    "IncomingCall",
    "encode",
]
