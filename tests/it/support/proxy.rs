//! A bad network between a client and a broker: a TCP proxy on loopback that delays, trickles, freezes, resets, half closes and cuts.
//!
//! Rules hold for every connection at once and can be changed while bytes flow. Where chance plays (the spread of delays, whether a cut
//! is a reset or an orderly end), it comes from the seed.

use std::net::TcpListener as Bound;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

use super::dice::Dice;

/// So long nothing has passed, and the exchange is over.
const STILL: Duration = Duration::from_millis(20);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    ToBroker,
    ToClient,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weather {
    Fair,
    /// Every piece comes so much later, up to half as much more.
    Delay(Duration),
    /// So many bytes a second, each way.
    Trickle(u32),
    /// Connections stay, and can be made; nothing passes.
    Frozen,
}

/// What holds at present. Connections have numbers: what happened to all of them does not happen to later ones.
#[derive(Clone, Debug)]
struct Rules {
    weather: Weather,
    /// Those with lower numbers pass nothing any more, and never end.
    lost_below: u64,
    reset_below: u64,
    /// Those with lower numbers have ended in this direction.
    half_closed: Option<(u64, Direction)>,
}

/// After `left` more bytes in `direction` the connection that carries them is cut.
struct Cut {
    direction: Direction,
    left: usize,
    is_reset: bool,
}

/// A connection that somebody tried to make.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub at: Instant,
    /// The broker's port was open.
    pub reached: bool,
}

struct Shared {
    upstream: Mutex<u16>,
    rules: watch::Sender<Rules>,
    cut: Mutex<Option<Cut>>,
    passed: Mutex<[u64; 2]>,
    attempts: Mutex<Vec<Attempt>>,
    dice: Mutex<Dice>,
}

pub struct Proxy {
    pub port: u16,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

impl Proxy {
    /// Listens; until it is told where it leads, it turns everybody away.
    pub fn new(mut dice: Dice) -> Self {
        let bound = loop {
            // Below the ephemeral ports, as scripts/broker chooses them.
            if let Ok(bound) = Bound::bind(("127.0.0.1", 10_240 + dice.below(20_000) as u16)) {
                break bound;
            }
        };
        bound.set_nonblocking(true).unwrap();
        let port = bound.local_addr().unwrap().port();
        let rules = Rules { weather: Weather::Fair, lost_below: 0, reset_below: 0, half_closed: None };
        let shared = Arc::new(Shared {
            upstream: Mutex::new(0),
            rules: watch::Sender::new(rules),
            cut: Mutex::new(None),
            passed: Mutex::new([0; 2]),
            attempts: Mutex::new(Vec::new()),
            dice: Mutex::new(dice),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listening = shared.clone();
        runtime.spawn(async move { listening.listen(TcpListener::from_std(bound).unwrap()).await });
        Self { port, shared, runtime: Some(runtime) }
    }

    pub fn lead_to(&self, port: u16) {
        *self.shared.upstream.lock().unwrap() = port;
    }

    pub fn weather(&self, weather: Weather) {
        self.shared.rules.send_modify(|rules| rules.weather = weather);
    }

    /// The peer of every present connection is gone without a word; new ones are well.
    pub fn lose_peers(&self) {
        let next = self.shared.next();
        self.shared.rules.send_modify(|rules| rules.lost_below = next);
    }

    /// RST to both ends of every present connection.
    pub fn reset(&self) {
        let next = self.shared.next();
        self.shared.rules.send_modify(|rules| rules.reset_below = next);
    }

    /// FIN in one direction of every present connection; the other stays open.
    pub fn half_close(&self, direction: Direction) {
        let next = self.shared.next();
        self.shared.rules.send_modify(|rules| rules.half_closed = Some((next, direction)));
    }

    /// Cuts the connection that carries the `bytes`th byte from now on in this direction; that byte still passes.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        let is_reset = self.shared.dice.lock().unwrap().below(2) == 0;
        *self.shared.cut.lock().unwrap() = Some(Cut { direction, left: bytes, is_reset });
    }

    pub fn disarm(&self) {
        *self.shared.cut.lock().unwrap() = None;
    }

    /// Bytes so far.
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed.lock().unwrap()[direction as usize]
    }

    /// Waits until nothing has passed for some time.
    pub async fn stands_still(&self, within: Duration) {
        let passed = || *self.shared.passed.lock().unwrap();
        let deadline = Instant::now() + within;
        let mut before = passed();
        loop {
            tokio::time::sleep(STILL).await;
            if std::mem::replace(&mut before, passed()) == before {
                return;
            }
            assert!(Instant::now() < deadline, "not within {within:?}: nothing passes any more");
        }
    }

    pub fn attempts(&self) -> Vec<Attempt> {
        self.shared.attempts.lock().unwrap().clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.runtime.take().expect("it has one until here").shutdown_background();
    }
}

/// How a connection ends.
enum End {
    Orderly,
    Reset,
}

impl Shared {
    /// The number of the next connection.
    fn next(&self) -> u64 {
        self.attempts.lock().unwrap().len() as u64
    }

    async fn listen(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((client, _)) = listener.accept().await else { continue };
            let upstream = *self.upstream.lock().unwrap();
            let server = TcpStream::connect(("127.0.0.1", upstream)).await;
            let number = self.next();
            self.attempts.lock().unwrap().push(Attempt { at: Instant::now(), reached: server.is_ok() });
            if let Ok(server) = server {
                tokio::spawn(self.clone().carry(number, client, server));
            }
        }
    }

    async fn carry(self: Arc<Self>, number: u64, client: TcpStream, server: TcpStream) {
        client.set_nodelay(true).unwrap();
        server.set_nodelay(true).unwrap();
        let (mut from_client, to_client) = client.into_split();
        let (mut from_server, to_server) = server.into_split();
        let (mut to_client, mut to_server) = (Some(to_client), Some(to_server));
        let mut rules = self.rules.subscribe();
        let end = {
            let up = self.pump(number, Direction::ToBroker, &mut from_client, &mut to_server);
            let down = self.pump(number, Direction::ToClient, &mut from_server, &mut to_client);
            let both = async { tokio::try_join!(up, down).map_or_else(|end| end, |_| End::Orderly) };
            tokio::select! {
                end = both => end,
                _ = rules.wait_for(|rules| number < rules.reset_below) => End::Reset,
            }
        };
        if matches!(end, End::Reset) {
            for half in [&from_client, &from_server] {
                let _ = half.as_ref().set_zero_linger();
            }
            to_client.into_iter().chain(to_server).for_each(OwnedWriteHalf::forget);
        }
    }

    /// Carries one direction to its end; an error is the end of both.
    async fn pump(
        &self,
        number: u64,
        direction: Direction,
        from: &mut OwnedReadHalf,
        to: &mut Option<OwnedWriteHalf>,
    ) -> Result<(), End> {
        let mut rules = self.rules.subscribe();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let passes = |rules: &Rules| rules.weather != Weather::Frozen && number >= rules.lost_below;
            let is_half_closed =
                |rules: &Rules| rules.half_closed.is_some_and(|(below, d)| number < below && d == direction);
            let weather = match rules.wait_for(passes).await {
                Ok(rules) if is_half_closed(&rules) => break,
                Ok(rules) => rules.weather,
                Err(_) => return Err(End::Reset),
            };
            let most = if matches!(weather, Weather::Trickle(_)) { 1 } else { buffer.len() };
            let read = tokio::select! {
                read = from.read(&mut buffer[..most]) => read,
                _ = rules.changed() => continue,
            };
            let count = match read {
                Ok(0) => break,
                Ok(count) => count,
                Err(_) => return Err(End::Reset),
            };
            match weather {
                Weather::Delay(time) => tokio::time::sleep(self.spread(time)).await,
                Weather::Trickle(rate) => {
                    tokio::select! {
                        () = tokio::time::sleep(Duration::from_secs(1) / rate) => {}
                        _ = rules.changed() => {}
                    }
                }
                Weather::Fair | Weather::Frozen => {}
            }
            let (count, end) = self.cut(direction, count);
            let Some(to) = to.as_mut() else { break };
            if to.write_all(&buffer[..count]).await.is_err() {
                return Err(End::Reset);
            }
            self.passed.lock().unwrap()[direction as usize] += count as u64;
            if let Some(end) = end {
                return Err(end);
            }
        }
        *to = None;
        Ok(())
    }

    fn spread(&self, time: Duration) -> Duration {
        self.dice.lock().unwrap().between(time, time + time / 2)
    }

    /// How many of `count` bytes still pass, and how the connection ends behind them, if it does.
    fn cut(&self, direction: Direction, count: usize) -> (usize, Option<End>) {
        let mut cut = self.cut.lock().unwrap();
        let Some(armed) = cut.as_mut().filter(|cut| cut.direction == direction) else { return (count, None) };
        if armed.left > count {
            armed.left -= count;
            return (count, None);
        }
        let (left, end) = (armed.left, if armed.is_reset { End::Reset } else { End::Orderly });
        *cut = None;
        (left, Some(end))
    }
}
