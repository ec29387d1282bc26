"""A client for every application on top of devp2pd, for any protocol: one Exchange stream, with credit in both
directions, that is made again when it breaks, and counts lost messages.

The application is an object with these methods, all called on the thread that is in `run`:

    opened(channel)                      a peer shares a protocol with us
    writable(channel)                    the window of this channel is open: send while `channel.credit > 0`
    message(channel, code, payload)      a message of the peer
    lost(channel, messages)              so many messages of the peer never came
    closed(channel, closed)              the peer is gone
    told(event, **fields)                what else happens, for a log
"""

import collections
import queue
import random
import time
import uuid

import grpc

from stubs import message_pb2 as pb, message_pb2_grpc, types_pb2

# The cost of a message in a window beside its payload, so that empty ones are not free (WindowUpdate in the contract).
OVERHEAD = 64
# The send window of a channel, of which `send_window_bytes` and credit give the rest.
WINDOW = 1 << 20
# All that is ready goes into one frame, up to this much: batching is the largest factor of speed in Python.
FRAME_EVENTS, FRAME_BYTES = 512, 256 * 1024
# Another attempt cannot help: the request is wrong, or (ABORTED) another process took our place.
FATAL = {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED,
         grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.ABORTED}


class Channel:
    """One connection to a peer, for one protocol. It outlives our streams; its number does not."""

    def __init__(self, client, opened):
        self.client, self.opened, self.peer = client, opened, opened.peer
        self.position, self.recent, self.recent_cost = opened.position, collections.deque(), 0

    def send(self, code, payload):
        self.client.sends += 1
        message = pb.OutboundMessage(channel_ids=[self.id], code=code, payload=payload, send_id=self.client.sends)
        self.client.events.put(pb.ClientEvent(message=message))
        self.credit -= len(payload) + OVERHEAD
        self.recent.append(message)
        self.recent_cost += len(payload) + OVERHEAD
        # Messages a whole window back have been processed: without credit for them we could not have gone on.
        while self.recent_cost - (first := len(self.recent[0].payload) + OVERHEAD) > WINDOW:
            self.recent.popleft()
            self.recent_cost -= first

    def on_stream(self, opened, last_send_id):
        """A stream tells of this connection: our first one, or one after a stream that broke."""
        self.opened, self.id, self.credit, self.parts = opened, opened.channel_id, opened.send_window_bytes, bytearray()
        self.miss(opened.position - self.position)  # what went to the stream that broke, and did not come
        again = [message for message in self.recent if message.send_id > last_send_id]
        self.recent, self.recent_cost = collections.deque(), 0
        for message in again:  # what never reached the sidecar
            self.send(message.code, message.payload)
        if self.credit > 0:
            self.client.app.writable(self)

    def received(self, message):
        """Takes a message or a part of one, and returns its cost in our window."""
        payload = message.payload
        if message.HasField("fragment"):  # larger than our frames: the parts come in order
            self.parts += payload
            if len(self.parts) < message.fragment.total_bytes:
                return len(payload)
            payload, self.parts = bytes(self.parts), bytearray()
        self.position += 1
        self.client.app.message(self, message.code, payload)
        return len(message.payload) + OVERHEAD

    def miss(self, messages):
        self.position += messages
        if messages:
            self.client.app.lost(self, messages)


class Client:
    """Keeps one stream to the sidecar at `address` (HOST:PORT or unix:PATH) for a registration `spec`."""

    def __init__(self, app, spec, address, token=None, ca=None, max_frame=4 << 20):
        self.app, self.spec, self.address, self.ca, self.max_frame = app, spec, address, ca, max_frame
        self.options = [("grpc.max_receive_message_length", max_frame + 65536)]
        if address.startswith("unix:"):
            # gRPC's C core would send the path as the authority, which HTTP/2 servers refuse.
            self.options.append(("grpc.default_authority", "localhost"))
        self.metadata = [("authorization", f"Bearer {token}")] if token else []
        self.sends, self.resume_token = 0, None

    def run(self):
        self.delay, self.attempt, self.sessions = 0.1, uuid.uuid4().hex, {}
        while True:
            self.events, self.channels, self.former, self.sessions = queue.SimpleQueue(), {}, self.sessions, {}
            with self._connect() as connection:
                try:
                    stub = message_pb2_grpc.MessageServiceStub(connection)
                    for frame in stub.Exchange(self._frames(), metadata=self.metadata):
                        self._handle(frame.events)
                    self.app.told("stream-ended")
                except grpc.RpcError as error:
                    self.app.told("stream-broken", code=error.code().name, detail=error.details())
                    if error.code() in FATAL:
                        raise SystemExit(1) from None
                    if error.code() == grpc.StatusCode.NOT_FOUND:  # the lease is over, or it is another sidecar
                        self.resume_token = None
                finally:
                    self.events.put(None)
            self.sessions = {**self.former, **self.sessions}
            time.sleep(self.delay * random.uniform(0.5, 1.5))
            self.delay = min(self.delay * 2, 5)

    def _connect(self):
        if not self.ca:
            return grpc.insecure_channel(self.address, options=self.options)
        with open(self.ca, "rb") as file:
            credentials = grpc.ssl_channel_credentials(file.read())
        return grpc.secure_channel(self.address, credentials, options=self.options)

    def _frames(self):
        """The frames to the sidecar: first our identity, then all messages that are ready."""
        attach = pb.Attach(max_frame_bytes=self.max_frame, request_id=self.attempt)
        if self.resume_token:
            attach.resume_token = self.resume_token
        else:
            attach.spec.CopyFrom(self.spec)
        yield pb.ExchangeRequest(events=[pb.ClientEvent(attach=attach)])
        source = self.events  # a later stream has a queue of its own
        while (event := source.get()) is not None:
            frame, size = [event], len(event.message.payload)
            while len(frame) < FRAME_EVENTS and size < FRAME_BYTES and not source.empty():
                if (event := source.get()) is None:
                    return
                if len(event.message.payload) > FRAME_BYTES:  # a large message goes alone
                    yield pb.ExchangeRequest(events=frame)
                    frame, size = [], 0
                frame.append(event)
                size += len(event.message.payload)
            yield pb.ExchangeRequest(events=frame)

    def _handle(self, events):
        spent = collections.Counter()
        for event in events:
            kind = event.WhichOneof("event")
            body = getattr(event, kind) if kind else None
            if kind == "message":
                spent[body.channel_id] += self.channels[body.channel_id].received(body)
            elif kind == "attached":
                self._attached(body)
            elif kind == "channel_opened":
                self._opened(body)
            elif kind == "window_update" and body.channel_id in self.channels:  # a closed channel may still have one
                channel = self.channels[body.channel_id]
                channel.credit += body.bytes
                if channel.credit > 0:
                    self.app.writable(channel)
            elif kind == "channel_closed":
                channel = self.channels.pop(body.channel_id)
                self.sessions = {key: other for key, other in self.sessions.items() if other is not channel}
                self.app.closed(channel, body)
            elif kind == "send_failure":
                reason = types_pb2.ErrorReason.Name(body.reason)
                self.app.told("send-failed", channel=body.channel_id, reason=reason, detail=body.detail)
            elif kind == "gap":
                self.app.told("gap", channel=body.channel_id, messages=body.messages, bytes=body.bytes)
                if body.channel_id:
                    self.channels[body.channel_id].miss(body.messages)
            elif kind == "drain":
                self.app.told("sidecar-stops", deadline=body.deadline.ToJsonString())
        for channel_id, cost in [*spent.items(), (0, spent.total())]:  # 0 is the stream
            if cost and (channel_id == 0 or channel_id in self.channels):
                self.events.put(pb.ClientEvent(window_update=pb.WindowUpdate(channel_id=channel_id, bytes=cost)))

    def _attached(self, attached):
        self.delay, self.attempt = 0.1, uuid.uuid4().hex
        self.resume_token, self.last_send_id = attached.resume_token, attached.last_send_id
        self.app.told("attached", instance_id=attached.instance_id, resumed=attached.resumed)
        self.unheard = attached.existing_channels
        self._forget()

    def _opened(self, opened):
        channel = self.former.pop(opened.session_id, None)
        known = channel is not None
        channel = channel or Channel(self, opened)
        self.sessions[opened.session_id] = self.channels[opened.channel_id] = channel
        self.app.told("peer-resumed", node_id=channel.peer.node_id) if known else self.app.opened(channel)
        channel.on_stream(opened, self.last_send_id)
        self.unheard -= opened.existing
        self._forget()

    def _forget(self):
        """Once all connections that outlived the last stream were told, the others that we know are over."""
        while self.former and not self.unheard:
            end = pb.ChannelClosed(by="sidecar", detail="it ended while our stream was broken")
            self.app.closed(self.former.popitem()[1], end)
