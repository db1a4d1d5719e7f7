//! What a sink's far side must be able to do for the promises to be asked of it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use outboxd::sink::{FaultClass, Port, Sink};

use crate::support::flights::Draft;

/// Which sink a promise needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Case {
    /// A constant destination that is there.
    Ordinary,
    /// A destination made by a template.
    Routing,
    /// A destination that takes only small events.
    Small,
    /// A constant destination that is not there.
    Nowhere,
}

/// A message as the far side holds it.
#[derive(Clone, Debug)]
pub struct Message {
    pub id: String,
    pub kind: String,
    pub key: String,
    pub body: Vec<u8>,
    pub headers: BTreeMap<String, String>,
}

pub trait Rig: Sized {
    /// How the sink's probe calls a far side that is away.
    const AWAY: FaultClass = FaultClass::Unavailable;

    /// A destination of its own at a far side that tests share.
    async fn new() -> Self;
    /// The same at a far side of its own, which may be stopped.
    async fn alone() -> Self;
    fn open(&self, port: Port, case: Case) -> Box<dyn Sink>;
    fn make_unroutable(&self, draft: &mut Draft);
    /// `false` where nothing is too large.
    fn make_oversize(&self, draft: &mut Draft) -> bool;
    /// Everything that arrived at the ordinary destination, in order per key; waits until there are `least`.
    async fn arrived(&self, least: usize) -> Vec<Message>;
    async fn stop(&self);
    async fn start(&self);
    /// It hangs: connections stay, nothing is answered.
    async fn pause(&self);
    /// Whether all of the event's own headers are shown unasked.
    fn shows_own_headers(&self) -> bool {
        false
    }
}

/// A name that no other rig has.
pub fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}", NEXT.fetch_add(1, Ordering::Relaxed))
}
