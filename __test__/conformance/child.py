"""A child: reads all that its parent sends."""

from other_end import meet
from other_end.ring import Channel

channel = Channel(meet.from_parent())
count = 0
while channel.receive() is not None:
    count += 1
channel.end()
print(f"child has read {count}", flush=True)
channel.close()
