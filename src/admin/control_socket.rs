//! The control socket: one JSON request a line, one JSON answer a line. Who may open it (mode 0600) may act.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::Board;
use super::http::status_json;
use super::request::{Request, Task};
use crate::consumer::control::Command;
use crate::sqlite::writer::JobError;

/// Longer requests are refused.
const REQUEST_BYTES_MAX: usize = 64 << 10;

/// The socket; its file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ControlSocket {
    /// A socket that nobody listens on any more is replaced; a living one is an error.
    pub fn bind(path: &Path) -> io::Result<Self> {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            let message = format!("another outboxd listens on {}", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
        }
        if path.symlink_metadata().is_ok_and(|meta| std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type())) {
            std::fs::remove_file(path)?;
        }
        let before = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
        let listener = UnixListener::bind(path);
        rustix::process::umask(before);
        let listener = listener?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// Serves until the task is dropped.
    pub async fn serve(self, board: Board) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(converse(stream, board.clone()))),
                Err(error) => {
                    tracing::warn!(event = "control_accept_failed", detail = %error);
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

async fn converse(stream: UnixStream, board: Board) {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(tokio::io::AsyncReadExt::take(read, REQUEST_BYTES_MAX as u64)).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let answer = match serde_json::from_str::<Request>(&line) {
            Ok(request) => answer(&board, &request).await,
            Err(error) => failure(64, format!("the request cannot be read: {error}")),
        };
        if write.write_all(format!("{answer}\n").as_bytes()).await.is_err() {
            return;
        }
    }
}

fn failure(exit: i32, error: String) -> Value {
    json!({ "ok": false, "error": error, "exit": exit })
}

/// Does what is asked, on one consumer or on all.
pub async fn answer(board: &Board, request: &Request) -> Value {
    let task = match request.task() {
        Ok(Task::Status) => return json!({ "ok": true, "result": status_json(board) }),
        Ok(task) => task,
        Err(error) => return failure(64, error),
    };
    let handles: Vec<_> = match request.consumer() {
        None => board.handles.iter().collect(),
        Some(name) => match board.handle(name) {
            Some(handle) => vec![handle],
            None => {
                let known: Vec<&str> = board.handles.iter().map(|handle| handle.name.as_str()).collect();
                return failure(64, format!("there is no consumer {name}; there are: {}", known.join(", ")));
            }
        },
    };
    let mut results = Vec::new();
    for handle in handles {
        let result = match &task {
            Task::Status => unreachable!("answered above"),
            Task::Pause => handle.ask(Command::Pause).await,
            Task::Resume => handle.ask(Command::Resume).await,
            Task::Operate(operation) => handle.ask(|reply| Command::Operate(operation.clone(), reply)).await,
        };
        match result {
            Ok(value) => results.push(value),
            Err(error) => return refused(&handle.name, &error),
        }
    }
    json!({ "ok": true, "result": results })
}

fn refused(consumer: &str, error: &JobError) -> Value {
    failure(if matches!(error, JobError::Refused(_)) { 65 } else { 70 }, format!("{consumer}: {error}"))
}
