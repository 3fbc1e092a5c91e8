"""What one rule knows of each object on one source: how long it has stood in the zone, whether it came in or went out, and which way it
goes. An object is a track (`agents.cascade.tracks`); whether an alert may be raised is not decided here.

The detections of each frame are taken in as follows.

1. Forget the objects that were not seen for over `GAP_S`, and all of them if the clock ran backwards.
2. Of each track take its best detection. All that has no track is one object, of which only presence is judged.
3. Tell where its foot stands: inside the zone, outside (clear of it by `CLEAR` of the object's own size), or on the border between, which
   tells nothing. So a box that jitters on the border crosses nothing.
4. Entry: an object that was seen outside, and never inside, for at least `SETTLED_S` is seen inside. Exit: the other way. Where the object
   was before is told by faint detections too, so that one that becomes clear only as it comes near has entered all the same.
5. Its stay, inside or for an exit outside, began when it was seen there with the rule's score, without a gap of over `GAP_S` since; a
   crossing begins a new one.
6. It goes the way of its last stretch of at least `MOVED` of its box's height, made within `HEADING_S`, as angles look in the picture.
   Where a crossing is asked for, the way is that at the crossing.

All that is known of an object follows from its detections since some moment, and who knows less of them tells less: after a restart, which
numbers tracks anew, no object has entered, stayed or moved that had not before.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import OrderedDict, deque
from collections.abc import Iterable

import msgspec
import simplejpeg

from schemas.detections import Detection, Detections
from schemas.frames import Frame
from schemas.rules import Rule, Zone

GAP_S = 1.0  # an object that is not seen for longer has gone: all that is known of it begins again
SETTLED_S = 0.5  # on one side of a zone, before a change of sides is a crossing
CLEAR = (0.2, 0.1)  # shares of a box's width and height: walking moves a box's middle more than its lower edge
MOVED = 0.25  # of a box's height: more than the box of who stands jitters; who walks across the picture makes it in a third of a second
HEADING_S = 2.0  # who takes longer for that goes no way
OBJECTS = 600  # that are followed at a time, as many as a source has tracks; the ones not seen for longest are forgotten
TRAIL = 64  # last places of an object: `HEADING_S` at 30 frames a second

_GAP, _SETTLED, _HEADING = (dt.timedelta(seconds=seconds) for seconds in (GAP_S, SETTLED_S, HEADING_S))
_NONE = dt.timedelta()


class _Object(msgspec.Struct):
    """What is known of one object; `there` is the side that the rule asks for, `away` the other one. Times are capture times."""

    seen: dt.datetime
    there_since: dt.datetime | None = None
    there_until: dt.datetime | None = None
    away_since: dt.datetime | None = None  # None once it is seen there
    away_until: dt.datetime | None = None
    crossed: bool = False  # it has come over, and was not told of yet
    trail: deque[tuple[dt.datetime, float, float]] | None = None


class Paths:
    """The objects of one source, for one rule."""

    def __init__(self, rule: Rule, zone: Zone) -> None:
        self.rule, self.zone = rule, zone
        self._least = dt.timedelta(seconds=rule.min_duration_s)
        self._crossing, self._leaving = rule.on != "presence", rule.on == "exit"
        self._heading = _unit(rule.heading) if rule.heading else None
        self._least_cosine = math.cos(math.radians(rule.heading_tolerance_deg)) - 1e-9
        self._left, self._top = (min((point[axis] for point in zone.points), default=0.0) for axis in (0, 1))
        self._right, self._bottom = (max((point[axis] for point in zone.points), default=1.0) for axis in (0, 1))
        self._objects: OrderedDict[int | None, _Object] = OrderedDict()  # those seen last at the end

    def __len__(self) -> int:
        return len(self._objects)

    def follow(self, frame: Frame, detections: Detections) -> tuple[Detection, float] | None:
        """Take in a frame's detections. Of the objects that fulfil the rule on it, the one with the best score, and for how many seconds it
        has stood there; None if there is none. A crossing is told of once."""
        at = frame.captured_at
        self._forget(at)
        best: Detection | None = None
        held = _NONE
        for detection in self._sightings(detections):
            stayed = self._see(frame, self._object(detection.track, at), detection)
            if stayed is not None and (best is None or _order(detection) > _order(best)):
                best, held = detection, stayed
        return None if best is None else (best, held.total_seconds())

    def _sightings(self, detections: Detections) -> Iterable[Detection]:
        """The best detection of each object; who only asks what is there needs no others than those that the rule's score counts."""
        label, least = self.rule.label, self.rule.min_score
        looks_back = self._crossing or self._heading is not None
        found: dict[int | None, Detection] = {}
        for each in detections:
            if each.label != label or (each.score < least and not looks_back):
                continue
            if each.track is None and (looks_back or each.foot not in self.zone):
                continue
            other = found.get(each.track)
            if other is None or _order(each) > _order(other):
                found[each.track] = each
        return found.values()

    def _see(self, frame: Frame, known: _Object, detection: Detection) -> dt.timedelta | None:
        """For how long an object has stood where the rule wants it, if it now fulfils the rule."""
        at = frame.captured_at
        if known.trail is not None:
            known.trail.append((at, *detection.foot))
        if self._crossing:
            inside = self._inside(detection)
            there, away = (inside is False, inside is True) if self._leaving else (inside is True, inside is False)
            if away:
                known.away_since = known.away_since or at
                known.away_until = at
            elif there and known.away_since is not None and known.away_until is not None:
                if known.away_until - known.away_since >= _SETTLED:
                    known.crossed = self._heads(frame, known, detection)
                    known.there_since = known.there_until = None
                known.away_since = known.away_until = None
        else:
            there = detection.foot in self.zone
        if not there or detection.score < self.rule.min_score:
            return None
        if known.there_since is None or known.there_until is None or at - known.there_until > _GAP:
            known.there_since = at
        known.there_until = at
        stayed = at - known.there_since
        if stayed < self._least:
            return None
        if self._crossing:
            crossed, known.crossed = known.crossed, False
            return stayed if crossed else None
        return stayed if self._heads(frame, known, detection) else None

    def _inside(self, detection: Detection) -> bool | None:
        """Whether an object stands inside the zone; None: on its border."""
        x, y = detection.foot
        aside, along = CLEAR[0] * (detection.x1 - detection.x0), CLEAR[1] * (detection.y1 - detection.y0)
        if x + aside < self._left or x - aside > self._right or y + along < self._top or y - along > self._bottom:
            return False  # most are far away, and this is cheap
        if (x, y) in self.zone:
            return True
        near = ((x - aside, y), (x + aside, y), (x, y - along), (x, y + along))
        return None if any(point in self.zone for point in near) else False

    def _heads(self, frame: Frame, known: _Object, detection: Detection) -> bool:
        """Whether an object goes the rule's way, if it has one."""
        if self._heading is None:
            return True
        if known.trail is None or len(known.trail) < 2:
            return False
        x1, y1 = detection.foot
        least = max(MOVED * (detection.y1 - detection.y0), 1e-4)
        aspect = _aspect(frame.jpeg)
        for at, x, y in reversed(known.trail):
            if frame.captured_at - at > _HEADING:
                break
            dx, dy = (x1 - x) * aspect, y1 - y
            if (moved := math.hypot(dx, dy)) >= least:
                return dx * self._heading[0] + dy * self._heading[1] >= self._least_cosine * moved
        return False

    def _object(self, track: int | None, at: dt.datetime) -> _Object:
        known = self._objects.get(track)
        if known is None:
            trail = deque[tuple[dt.datetime, float, float]](maxlen=TRAIL) if self._heading is not None else None
            known = self._objects[track] = _Object(at, trail=trail)
            if len(self._objects) > OBJECTS:
                self._objects.popitem(last=False)
        else:
            known.seen = at
            self._objects.move_to_end(track)
        return known

    def _forget(self, at: dt.datetime) -> None:
        """Let go of the objects that have gone; the ones not seen for longest come first."""
        while self._objects:
            track, known = next(iter(self._objects.items()))
            if _NONE <= at - known.seen <= _GAP:
                return
            del self._objects[track]


def _order(detection: Detection) -> tuple[float, ...]:
    """Better detections are greater; never equal unless they are the same, so that their order in a frame decides nothing."""
    track = -1 if detection.track is None else detection.track
    return detection.score, detection.x0, detection.y0, detection.x1, detection.y1, track


def _unit(vector: tuple[float, ...]) -> tuple[float, float]:
    x, y = vector
    length = math.hypot(x, y)
    return x / length, y / length


def _aspect(jpeg: bytes) -> float:
    """A picture's width by its height; 1 where that cannot be told."""
    try:
        height, width, *_ = simplejpeg.decode_jpeg_header(jpeg)
    except ValueError:
        return 1.0
    return float(width / height) if width and height else 1.0
