//! Carries batches one after the other to a sink of its own, beside the live flow: replays, and copies of dead letters.
//!
//! It is not an engine: nothing is held, and one flight is in the air at a time. What does not get through for the far side's sake is
//! sent again, with what was behind it, for ever; what is refused is handed back.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

use crate::controls::{self, Seam};
use crate::event::{Batch, Rejection};
use crate::retry::Pace;
use crate::sink::{self, Fault, Flight, News, Outcome, Pick, Port, Sink};

const CHECK_TIMEOUT: Duration = Duration::from_secs(10);
const CLOSE_MAX: Duration = Duration::from_secs(2);

pub struct Courier {
    settings: sink::Settings,
    port: Port,
    ack_timeout: Duration,
    seam: Seam,
    /// With whether it was found well.
    sink: Option<(Box<dyn Sink>, bool)>,
    news: UnboundedReceiver<News>,
    news_tx: UnboundedSender<News>,
    next_flight: u64,
    pace: Pace,
}

impl Courier {
    /// `seam` is where a crash is tried before each flight.
    pub fn new(settings: sink::Settings, consumer: &str, source: &str, ack_timeout: Duration, seam: Seam) -> Self {
        let (news_tx, news) = mpsc::unbounded_channel();
        let port = Port { news: news_tx.clone(), consumer: consumer.to_owned(), source: source.to_owned() };
        let pace = Pace::new(Duration::from_millis(500), Duration::from_secs(10));
        Self { settings, port, ack_timeout, seam, sink: None, news, news_tx, next_flight: 1, pace }
    }

    /// Returns when each of the picked events is delivered, or refused; `trouble` hears what is in the way, and when nothing is any more.
    pub async fn carry(
        &mut self,
        batch: &Arc<Batch>,
        mut picks: Vec<Pick>,
        trouble: &mut (dyn FnMut(&str) + Send),
    ) -> Vec<(u32, Rejection)> {
        let mut refused = Vec::new();
        let mut most = picks.len();
        while !picks.is_empty() {
            if let Err(fault) = self.open().await {
                trouble(&fault.detail);
                tokio::time::sleep(self.pace.delay()).await;
                continue;
            }
            let group = picks[..most.clamp(1, picks.len())].to_vec();
            controls::reach(self.seam);
            let flight = Flight::new(self.next_flight, batch.clone(), group.clone(), self.news_tx.clone());
            self.next_flight += 1;
            self.sink().send(flight.clone());
            let notes = match self.landed(&flight, trouble).await {
                Ok(()) => flight.take_notes(),
                Err(late) => {
                    trouble(&late);
                    self.close().await;
                    picks.iter_mut().take(group.len()).for_each(|pick| pick.redelivery = true);
                    continue;
                }
            };
            let mut settled = group.len();
            for (slot, outcome) in notes {
                match outcome {
                    Outcome::Delivered => {}
                    Outcome::Rejected(rejection) => refused.push((group[slot as usize].index, rejection)),
                    Outcome::Suspect(rejection) if group.len() == 1 => refused.push((group[0].index, rejection)),
                    // Shared blame convicts nobody: from here on, in ever smaller groups.
                    Outcome::Suspect(_) => {
                        most = (group.len() / 2).max(1);
                        settled = slot as usize;
                    }
                    Outcome::Behind => unreachable!("a sink refuses events one by one"),
                    Outcome::Unavailable(fault) => {
                        trouble(&fault.detail);
                        self.sink.as_mut().expect("it has just been used").1 = false;
                        settled = slot as usize;
                    }
                }
                if settled < group.len() {
                    break;
                }
            }
            if settled == group.len() {
                self.pace.succeeded();
                trouble("");
                most = most.saturating_mul(2);
            } else if !self.sink.as_ref().is_some_and(|(_, is_well)| *is_well) {
                tokio::time::sleep(self.pace.delay()).await;
            }
            picks.iter_mut().take(group.len()).for_each(|pick| pick.redelivery = true);
            picks.drain(..settled);
        }
        refused
    }

    async fn open(&mut self) -> Result<(), Fault> {
        let (sink, is_well) = self.sink.get_or_insert_with(|| (sink::open(&self.settings, self.port.clone()), false));
        if !*is_well {
            let checked = tokio::time::timeout(CHECK_TIMEOUT * 2, sink.check(CHECK_TIMEOUT)).await;
            checked.unwrap_or_else(|_| Err(Fault::unavailable("the probe did not come back")))?;
            *is_well = true;
        }
        Ok(())
    }

    fn sink(&mut self) -> &mut Box<dyn Sink> {
        &mut self.sink.as_mut().expect("it was opened").0
    }

    /// Waits for the flight; an error when nothing more is to be expected of the sink. While the broker has publishers blocked the
    /// clock stands still.
    async fn landed(&mut self, flight: &Flight, trouble: &mut (dyn FnMut(&str) + Send)) -> Result<(), String> {
        let mut since = Instant::now();
        let mut blocked = false;
        loop {
            let left = if blocked { self.ack_timeout } else { self.ack_timeout.saturating_sub(since.elapsed()) };
            match tokio::time::timeout(left, self.news.recv()).await {
                Ok(Some(News::Landed(landed))) if landed.id == flight.id => return Ok(()),
                // Of a sink that was closed since.
                Ok(Some(News::Landed(_)) | None) => {}
                Ok(Some(News::Trouble(fault))) => trouble(&fault.detail),
                Ok(Some(News::Blocked(why))) => {
                    blocked = why.is_some();
                    since = Instant::now();
                    trouble(&why.unwrap_or_default());
                }
                Err(_) if blocked => {}
                Err(_) => return Err(format!("no acknowledgement for {:?}", self.ack_timeout)),
            }
        }
    }

    /// Lets go of the sink; the next batch opens another.
    pub async fn close(&mut self) {
        if let Some((sink, _)) = self.sink.take() {
            let _ = tokio::time::timeout(CLOSE_MAX, sink.close()).await;
        }
    }
}
