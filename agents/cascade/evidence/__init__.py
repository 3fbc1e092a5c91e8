"""What is sent to the region: a frame as a small JPEG at the region's input size, or several of one source as a clip, since the codec wins
most of the bytes; and the question that goes with it.

- `pixels`: a frame at the size that is sent, with what must not leave the site covered (`redaction`).
- `frame`: one JPEG a frame. `clip`: H.264, each clip decodable alone. `playback`: clips read again, checked before a decoder sees them.
- `forms`: which of both, and how good. `clips`: the clips that are being made. `question`: who is asked what.

Measured on a pedestrian square (768 x 576, 10 frames a second; 512 x 512 sent), in shares of every frame as a full-size JPEG of quality 90,
and as agreement of the demo's region with what it says of those (AP50 of people; of pixels that were squeezed and not encoded .971):

| form | bytes | agreement |
| --- | --- | --- |
| picture of quality 20 / 30 / 50 | 13.9 / 18.2 / 25.2 % | .940 / .944 / .940 |
| clips of 5 frames, rate factor 23 / 28 / 30 | 10.5 / 5.8 / 4.6 % | .966 / .958 / .954 |
| clips of 10 frames, rate factor 23 / 28 / 33 | 7.6 / 4.0 / 2.1 % | .966 / .958 / .950 |
| clips of 30 frames, rate factor 23 / 28 / 33 | 5.4 / 2.7 / 1.4 % | .965 / .960 / .951 |

What the leaf thought of each frame adds about .4 % (compressed). A frame costs 2.3 to 3 ms of one core: decoding 1.2, squeezing .5, the
rest encoding.

What a clip costs is time: a frame waits until its clip ends, at the longest `evidence.clip_s`, or until `evidence.clip_frames` of its
source are in it. Of n frames asked about at a steady rate the first waits (n - 1) / rate and the last one not at all. At 10 frames a
second a clip of 5 adds up to .4 s, of 10 up to .9 s, of 30 up to 2 s (then the time ends it); at 30 a second .13, .3 and 1 s. The way and
the region's looks come on top, and the region looks at a clip's frames one after another.
"""

from agents.cascade.evidence.frame import encode_frame as encode_frame
from agents.cascade.evidence.question import escalate as escalate
