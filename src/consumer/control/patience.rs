//! How long operators are kept waiting.

use std::time::Duration;

use tokio::sync::watch;

use super::{Done, Operation, operate};
use crate::consumer::Settings;
use crate::source::reader::Reader;
use crate::sqlite::writer::{JobError, Writer, WriterState};

/// How long an operator is kept waiting by a consumer that is halted.
pub const OPERATION_MAX: Duration = Duration::from_secs(30);

/// Bounds what an operator asked for: a file may be locked, a source not be there.
pub async fn in_time<T>(work: impl Future<Output = Result<T, JobError>>) -> Result<T, JobError> {
    tokio::time::timeout(OPERATION_MAX, work).await.unwrap_or_else(|_| Err(late()))
}

pub fn late() -> JobError {
    JobError::Refused(format!(
        "not done within {OPERATION_MAX:?}: the file may be locked, or not be there. It may still be done later"
    ))
}

/// [`operate`] with a bound on how long it may take. What moves whole tables is waited for as long as it works: there, only a file that others
/// keep locked is waited for in vain. `None`: it was not done in time.
pub async fn operate_within(
    most: Duration,
    writer: &Writer,
    reader: &Reader,
    settings: &Settings,
    operation: Operation,
) -> Option<Result<Done, JobError>> {
    let takes_its_time = matches!(operation, Operation::Swap { .. } | Operation::DropKept);
    let work = operate(writer, reader, settings, operation);
    match takes_its_time {
        true => while_it_works(writer.state.clone(), most, work).await,
        false => tokio::time::timeout(most, work).await.ok(),
    }
}

async fn while_it_works<T>(
    mut state: watch::Receiver<WriterState>,
    most: Duration,
    work: impl Future<Output = T>,
) -> Option<T> {
    let locked_out = async {
        loop {
            if state.wait_for(|state| *state != WriterState::Ready).await.is_err() {
                // The writer has ended, and so will the work.
                return std::future::pending().await;
            }
            if tokio::time::timeout(most, state.wait_for(|state| *state == WriterState::Ready)).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        done = work => Some(done),
        () = locked_out => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_works_is_waited_for_and_what_is_locked_out_is_not() {
        const MOST: Duration = Duration::from_millis(50);
        let (state, seen) = watch::channel(WriterState::Ready);
        let long = async { tokio::time::sleep(8 * MOST).await };
        assert_eq!(while_it_works(seen.clone(), MOST, long).await, Some(()));
        state.send_replace(WriterState::Waiting("locked".to_owned()));
        assert_eq!(while_it_works(seen.clone(), MOST, std::future::pending::<()>()).await, None);
        // Whoever comes to his turn meanwhile is waited for again.
        let (began, then) = (std::time::Instant::now(), state.clone());
        let turn = async move {
            then.send_replace(WriterState::Ready);
            tokio::time::sleep(8 * MOST).await;
            then.send_replace(WriterState::Waiting("locked".to_owned()));
            std::future::pending::<()>().await
        };
        assert_eq!(while_it_works(seen, MOST, turn).await, None);
        assert!(began.elapsed() >= 9 * MOST);
    }
}
