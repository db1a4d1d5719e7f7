//! Waiting on a level, with a deadline: never a sleep that hopes.

use std::time::{Duration, Instant};

/// Asks until there is an answer.
///
/// # Panics
/// When there is none in time; `what` says what was waited for.
pub fn until<T>(what: &str, time: Duration, ask: impl FnMut() -> Option<T>) -> T {
    within(time, ask).unwrap_or_else(|| panic!("not within {time:?}: {what}"))
}

/// Asks until there is an answer, or the time is over.
pub fn within<T>(time: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + time;
    loop {
        let answer = ask();
        if answer.is_some() || Instant::now() >= deadline {
            return answer;
        }
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
