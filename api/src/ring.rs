//! The last events of one job, framed once for all who watch it. A reader is a place in it, never a queue:
//! one that falls behind the oldest event kept here reads the log itself, and costs nobody else anything.

use std::{collections::VecDeque, fmt::Write as _};

use bytes::{BufMut as _, Bytes, BytesMut};
use shared::event::{Event, EventId, is_terminal};

/// The most events kept.
const MAX_EVENTS: usize = 512;
/// The most bytes kept, whatever their number; the newest event is always kept.
const MAX_BYTES: usize = 4 * 1024 * 1024;

/// What a frame has beside its JSON and the event's type, at most.
const HEAD_BYTES: usize = 48;
/// What ends a frame.
const END: &[u8] = b"\n\n";

/// The place before every event of `attempt`.
pub fn before(attempt: u32) -> EventId {
    EventId { attempt: attempt.saturating_sub(1), n: u32::MAX }
}

/// An event as it goes out: `id`, `event` and `data` of an SSE stream. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framed {
    /// Its number.
    pub id: EventId,
    /// Whether it is the last of its job.
    pub is_terminal: bool,
    /// The whole frame.
    pub frame: Bytes,
    /// Where in the frame its JSON begins.
    json: usize,
}

impl Framed {
    /// Frame `event`, whose JSON is one line.
    pub fn new(event: &Event) -> Self {
        let kind = event.kind();
        let mut frame = BytesMut::with_capacity(event.json.len() + kind.len() + HEAD_BYTES);
        // Writing to memory does not fail.
        let _ = write!(frame, "id: {}\nevent: {kind}\ndata: ", event.id);
        let json = frame.len();
        frame.put_slice(&event.json);
        frame.put_slice(END);
        Self { id: event.id, is_terminal: is_terminal(kind), frame: frame.freeze(), json }
    }

    /// The event alone.
    pub fn json(&self) -> &[u8] {
        &self.frame[self.json..self.frame.len() - END.len()]
    }
}

/// Where a reader stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// These come next.
    Next(Vec<Framed>),
    /// What comes next is older than what is kept here.
    Behind,
    /// There is nothing newer.
    CaughtUp,
}

/// The newest events, without a hole between them.
#[derive(Debug, Default)]
pub struct Ring {
    events: VecDeque<Framed>,
    bytes: usize,
}

impl Ring {
    /// Keep `event`, letting the oldest go where there are too many. An event that does not follow the
    /// newest makes all before it useless: they go too. An older one is ignored.
    pub fn push(&mut self, event: Framed) {
        if let Some(newest) = self.newest() {
            if event.id <= newest {
                return;
            }
            if !event.id.follows(Some(newest)) {
                self.events.clear();
                self.bytes = 0;
            }
        }
        self.bytes += event.frame.len();
        self.events.push_back(event);
        while self.events.len() > MAX_EVENTS || (self.bytes > MAX_BYTES && self.events.len() > 1) {
            let Some(oldest) = self.events.pop_front() else { break };
            self.bytes -= oldest.frame.len();
        }
    }

    /// The newest event's number.
    pub fn newest(&self) -> Option<EventId> {
        self.events.back().map(|event| event.id)
    }

    /// The events after `place`, as many as fit in `room` bytes and at least one, for a reader that has seen
    /// everything up to there.
    pub fn after(&self, place: EventId, room: usize) -> Place {
        let first = self.events.partition_point(|event| event.id <= place);
        match self.events.get(first) {
            None => Place::CaughtUp,
            Some(event) if first == 0 && !event.id.follows(Some(place)) => Place::Behind,
            Some(_) => Place::Next(fitting(self.events.range(first..).cloned(), room)),
        }
    }

    /// The event `id`, if it is kept here.
    pub fn get(&self, id: EventId) -> Option<&Framed> {
        let at = self.events.binary_search_by_key(&id, |event| event.id).ok()?;
        self.events.get(at)
    }
}

/// The first of `events`, and those after it that fit in `room` bytes together with it.
pub fn fitting(events: impl Iterator<Item = Framed>, room: usize) -> Vec<Framed> {
    let mut bytes = 0;
    let fits = |event: &Framed| {
        let is_first = bytes == 0;
        bytes += event.frame.len();
        is_first || bytes <= room
    };
    events.take_while(fits).collect()
}

#[cfg(test)]
mod tests {
    use shared::{event::EventBody, time::Timestamp};

    use super::*;

    fn id(text: &str) -> EventId {
        text.parse().expect("an event id")
    }

    fn event(at: &str, bytes: usize) -> Framed {
        let body = EventBody::ThinkingDelta { message_id: "m".into(), text: "x".repeat(bytes) };
        Framed::new(&Event::new(id(at), &body, Timestamp::from_unix_ms(0)))
    }

    fn ring(ids: &[&str]) -> Ring {
        let mut ring = Ring::default();
        for id in ids {
            ring.push(event(id, 1));
        }
        ring
    }

    fn next(ring: &Ring, place: EventId) -> Option<Vec<String>> {
        match ring.after(place, 100 * event("1-100", 1).frame.len()) {
            Place::Next(events) => Some(events.iter().map(|event| event.id.to_string()).collect()),
            Place::CaughtUp => Some(Vec::new()),
            Place::Behind => None,
        }
    }

    #[test]
    fn a_frame_is_one_sse_message_with_the_json_untouched() {
        let body = EventBody::TextDelta { message_id: "m".into(), text: "a\nb".into(), parent_tool_use_id: None };
        let event = Event::new(id("2-7"), &body, Timestamp::from_unix_ms(0));

        let framed = Framed::new(&event);

        let json = std::str::from_utf8(&event.json).expect("UTF-8");
        assert_eq!(framed.frame, format!("id: 2-7\nevent: text.delta\ndata: {json}\n\n"));
        assert!(!json.contains('\n'));
        assert!(!framed.is_terminal);
    }

    #[test]
    fn a_reader_gets_what_it_has_not_seen_once_and_in_order() {
        let ring = ring(&["1-0", "1-1", "1-2", "2-0", "2-1"]);

        assert_eq!(next(&ring, before(1)), Some(["1-0", "1-1", "1-2", "2-0", "2-1"].map(String::from).into()));
        assert_eq!(next(&ring, id("1-1")), Some(["1-2", "2-0", "2-1"].map(String::from).into()));
        assert_eq!(next(&ring, before(2)), Some(["2-0", "2-1"].map(String::from).into()));
        assert_eq!(next(&ring, id("2-1")), Some(vec![]));
        assert_eq!(next(&ring, id("9-9")), Some(vec![]));
    }

    #[test]
    fn a_reader_older_than_the_ring_is_behind() {
        let mut ring = Ring::default();
        for n in 0..=MAX_EVENTS {
            ring.push(event(&format!("1-{n}"), 1));
        }

        assert_eq!(next(&ring, before(1)), None);
        assert_eq!(next(&ring, id("1-100")).map(|events| events.len()), Some(100));
        assert_eq!(ring.events.len(), MAX_EVENTS);
    }

    #[test]
    fn what_fits_is_never_nothing_and_never_more_than_the_room_after_the_first() {
        let large = event("1-0", 1000);
        let (room, small) = (large.frame.len() - 1, || [event("1-1", 1), event("1-2", 1), event("1-3", 1)].into_iter());
        let count = |events: Vec<Framed>| events.len();

        assert_eq!(count(fitting(std::iter::empty(), room)), 0);
        assert_eq!(count(fitting([large.clone(), event("1-1", 1)].into_iter(), room)), 1);
        assert_eq!(count(fitting(small().chain([large]), room)), 3);
        let bytes = event("1-1", 1).frame.len();
        assert_eq!([bytes - 1, bytes, 2 * bytes - 1, 2 * bytes, 3 * bytes].map(|room| count(fitting(small(), room))), [1, 1, 1, 2, 3]);
    }

    #[test]
    fn an_event_is_found_by_its_number_as_long_as_it_is_kept() {
        let mut ring = ring(&["1-0", "1-1", "2-0"]);

        assert_eq!(ring.get(id("1-1")), Some(&event("1-1", 1)));
        assert_eq!([id("1-2"), id("2-1"), before(1), before(2)].map(|id| ring.get(id).is_some()), [false; 4]);
        for n in 1..MAX_EVENTS {
            ring.push(event(&format!("2-{n}"), 1));
        }
        assert_eq!(["1-0", "1-1", "2-0", "2-1"].map(|at| ring.get(id(at)).is_some()), [false, false, true, true]);
    }

    #[test]
    fn a_ring_is_bounded_in_bytes_and_keeps_its_newest() {
        let mut ring = Ring::default();
        for n in 0..40 {
            ring.push(event(&format!("1-{n}"), MAX_BYTES / 20));
        }

        assert!(ring.bytes <= MAX_BYTES);
        assert_eq!(ring.bytes, ring.events.iter().map(|event| event.frame.len()).sum::<usize>());
        assert_eq!(ring.newest(), Some(id("1-39")));
        assert_eq!(next(&ring, id("1-2")), None);
    }

    #[test]
    fn what_does_not_follow_starts_the_ring_anew_and_what_is_old_is_ignored() {
        let mut ring = ring(&["1-0", "1-1", "1-0", "1-5"]);

        assert_eq!(next(&ring, id("1-1")), None);
        assert_eq!(next(&ring, id("1-4")), Some(vec!["1-5".into()]));
        ring.push(event("1-3", 1));
        assert_eq!(ring.newest(), Some(id("1-5")));
    }
}
