//! Two stages of stopping: drain (take no more, settle what is in hand), then cut, which is harmless by the guarantees.

use std::convert::Infallible;
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
#[derive(Clone, Debug)]
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

/// Passes a drain on to those behind `inner`; never ends by itself.
pub async fn forward(outer: &mut watch::Receiver<Phase>, inner: &Shutdown) -> Infallible {
    asked(outer).await;
    let phase = *outer.borrow();
    inner.0.send_replace(match phase {
        Phase::Drain { .. } => phase,
        // Whoever could ask is gone.
        Phase::Run => Phase::Drain { deadline: Instant::now() },
    });
    std::future::pending().await
}

/// Waits until a drain is asked for.
pub async fn asked(phase: &mut watch::Receiver<Phase>) {
    // An error means that whoever could ask is gone: that is a drain as well.
    let _ = phase.wait_for(|phase| *phase != Phase::Run).await;
}
