//! Waiting on a level, with a deadline: never a sleep that hopes.

use std::time::{Duration, Instant};

/// Asks until there is an answer.
///
/// # Panics
/// When there is none in time; `what` says what was waited for.
pub fn until<T>(what: &str, within: Duration, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Looks again and again for the whole time: what must not happen, does not.
pub fn throughout(what: &str, time: Duration, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(holds(), "no longer: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
