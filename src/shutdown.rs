//! Two stages of stopping: drain (take no more, settle what is in hand), then cut, which is harmless by the guarantees.

use std::time::{Duration, Instant};

use tokio::sync::watch;

/// What everyone is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Run,
    /// Settle what is in hand and end; at the deadline, end anyway.
    Drain {
        deadline: Instant,
    },
}

/// Tells everyone.
#[derive(Debug)]
pub struct Shutdown(watch::Sender<Phase>);

impl Shutdown {
    pub fn new() -> (Self, watch::Receiver<Phase>) {
        let (sender, receiver) = watch::channel(Phase::Run);
        (Self(sender), receiver)
    }

    pub fn drain(&self, most: Duration) {
        self.0.send_replace(Phase::Drain { deadline: Instant::now() + most });
    }
}

/// Waits until a drain is asked for.
pub async fn asked(phase: &mut watch::Receiver<Phase>) {
    // An error means that whoever could ask is gone: that is a drain as well.
    let _ = phase.wait_for(|phase| *phase != Phase::Run).await;
}
