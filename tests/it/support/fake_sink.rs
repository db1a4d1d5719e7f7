//! A sink in memory that does what a test tells it to.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use outboxd::event::{Event, Rejection};
use outboxd::sink::{BoxFuture, Fault, Flight, Outcome, Pick, Port, Sink};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

type Judge = Box<dyn Fn(&Event<'_>) -> Option<Rejection> + Send>;

/// What reached the far side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    pub id: String,
    pub key: Vec<u8>,
    pub body: Vec<u8>,
    pub pick: Pick,
    pub at: Instant,
}

/// The far side, held by the test.
#[derive(Clone, Default)]
pub struct FarSide(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    arrivals: Vec<Arrival>,
    fault: Option<Fault>,
    /// Refuses by name.
    reject: Option<Judge>,
    /// Refuses the whole flight for one event's sake, unless it is alone.
    suspect: Option<Judge>,
    delay: Duration,
    /// Outcomes for the next flights' events, before anything else is asked.
    script: VecDeque<Outcome>,
    /// Every event that was tried and not delivered: its id and attempt.
    refused: Vec<(String, u32)>,
    checks: Vec<Instant>,
    /// Sinks of an older one are cut off.
    generation: u64,
}

impl FarSide {
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.0.lock().unwrap().arrivals.clone()
    }

    /// Away with this fault, or back.
    pub fn fault(&self, fault: Option<Fault>) {
        self.0.lock().unwrap().fault = fault;
    }

    pub fn reject(&self, judge: impl Fn(&Event<'_>) -> Option<Rejection> + Send + 'static) {
        self.0.lock().unwrap().reject = Some(Box::new(judge));
    }

    pub fn suspect(&self, judge: impl Fn(&Event<'_>) -> Option<Rejection> + Send + 'static) {
        self.0.lock().unwrap().suspect = Some(Box::new(judge));
    }

    pub fn delay(&self, delay: Duration) {
        self.0.lock().unwrap().delay = delay;
    }

    #[allow(dead_code, reason = "for the engine's tests")]
    pub fn script(&self, outcomes: impl IntoIterator<Item = Outcome>) {
        self.0.lock().unwrap().script.extend(outcomes);
    }

    /// Nothing is refused any more.
    pub fn mend(&self) {
        let mut state = self.0.lock().unwrap();
        (state.reject, state.suspect, state.fault) = (None, None, None);
    }

    /// Whoever is connected is cut off: nothing of theirs arrives any more.
    pub fn cut(&self) {
        self.0.lock().unwrap().generation += 1;
    }

    pub fn refused(&self) -> Vec<(String, u32)> {
        self.0.lock().unwrap().refused.clone()
    }

    /// When it was probed.
    pub fn checks(&self) -> Vec<Instant> {
        self.0.lock().unwrap().checks.clone()
    }

    fn take(&self, flight: &Arc<Flight>) {
        let mut state = self.0.lock().unwrap();
        let State { arrivals, fault, reject, suspect, script, refused, .. } = &mut *state;
        let events = || (0..flight.len()).map(|slot| flight.event(slot));
        let shared = suspect.as_ref().and_then(|judge| events().find_map(|event| judge(&event)));
        for (slot, event) in events().enumerate() {
            let outcome = if let Some(outcome) = script.pop_front() {
                outcome
            } else if let Some(fault) = fault {
                Outcome::Unavailable(fault.clone())
            } else if let Some(rejection) = reject.as_ref().and_then(|judge| judge(&event)) {
                Outcome::Rejected(rejection)
            } else if let Some(rejection) = shared.clone() {
                if flight.len() == 1 { Outcome::Rejected(rejection) } else { Outcome::Suspect(rejection) }
            } else {
                Outcome::Delivered
            };
            if !matches!(outcome, Outcome::Delivered | Outcome::Unavailable(_)) {
                refused.push((event.id.into(), flight.picks[slot].attempt));
            }
            if outcome == Outcome::Delivered {
                arrivals.push(Arrival {
                    id: event.id.into(),
                    key: event.key.unwrap_or_default().into(),
                    body: event.payload.unwrap_or_default().into(),
                    pick: flight.picks[slot],
                    at: Instant::now(),
                });
            }
            flight.fill(slot, outcome);
        }
    }
}

pub struct FakeSink {
    far_side: FarSide,
    flights: Option<UnboundedSender<Arc<Flight>>>,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl FakeSink {
    pub fn new(far_side: FarSide, _port: Port) -> Self {
        Self { far_side, flights: None, task: None }
    }
}

impl Sink for FakeSink {
    fn check(&mut self, _timeout: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(async {
            let (fault, generation) = {
                let mut state = self.far_side.0.lock().unwrap();
                state.checks.push(Instant::now());
                (state.fault.clone(), state.generation)
            };
            if let Some(fault) = fault {
                return Err(fault);
            }
            if self.flights.is_none() {
                let (flights, mut inbox) = unbounded_channel::<Arc<Flight>>();
                let far_side = self.far_side.clone();
                self.task = Some(tokio::spawn(async move {
                    while let Some(flight) = inbox.recv().await {
                        let delay = far_side.0.lock().unwrap().delay;
                        if !delay.is_zero() {
                            tokio::time::sleep(delay).await;
                        }
                        if far_side.0.lock().unwrap().generation == generation {
                            far_side.take(&flight);
                        }
                    }
                }));
                self.flights = Some(flights);
            }
            Ok(())
        })
    }

    fn send(&mut self, flight: Arc<Flight>) {
        match &self.flights {
            Some(flights) => flights.send(flight).expect("the task lives as long as the sink"),
            None => flight.fill_rest(&Outcome::Unavailable(Fault::unavailable("not connected"))),
        }
    }

    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        Box::pin(async move { self.task.into_iter().for_each(|task| task.abort()) })
    }
}
