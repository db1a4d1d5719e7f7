//! `outboxd health`: asks the admin address as a probe would; without one, the control socket.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::control_client::{self, Answer, Request};
use super::{Context, Exit, Failure, terminal};
use crate::config::Span;

/// A probe's answer is short.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Ask whether it has started (/readyz), instead of whether its loops turn (/livez)
    #[arg(long)]
    pub ready: bool,
    /// Ask here, instead of at the `admin` address of the configuration
    #[arg(long, value_name = "ADDRESS")]
    pub address: Option<SocketAddr>,
    /// How long to wait for an answer
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = Span::parse)]
    pub timeout: Span,
}

pub fn execute(args: &Args, context: &Context) -> anyhow::Result<Exit> {
    let path = if args.ready { "/readyz" } else { "/livez" };
    let address = match args.address {
        Some(address) => address,
        None => {
            let daemon = context.load()?.config.daemon;
            match daemon.admin {
                Some(address) => address,
                None => return by_control_socket(&daemon.control),
            }
        }
    };
    let (status, body) =
        get(address, path, args.timeout.0).map_err(|error| unhealthy(format!("{address} does not answer: {error}")))?;
    if status != 200 {
        return Err(unhealthy(format!("{path} says {status}: {}", terminal::visible(body.trim()))).into());
    }
    terminal::print("healthy\n")?;
    Ok(Exit::Ok)
}

fn by_control_socket(socket: &std::path::Path) -> anyhow::Result<Exit> {
    match control_client::ask(socket, &Request::Status)? {
        Answer::Given(_) => {
            terminal::print("healthy\n")?;
            Ok(Exit::Ok)
        }
        Answer::NotRunning => Err(unhealthy(format!("nobody listens at {}", socket.display())).into()),
    }
}

fn unhealthy(reason: String) -> Failure {
    Failure { exit: Exit::Unavailable, reason, remedy: None }
}

/// The status and the body of an answer.
fn get(address: SocketAddr, path: &str, timeout: Duration) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    // In one piece: a server may answer, and close, as soon as it has read some of it.
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    match stream.take(ANSWER_BYTES_MAX).read_to_end(&mut answer) {
        // A reset behind the answer does not take it back.
        Err(error) if answer.is_empty() => return Err(error),
        _ => {}
    }
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let not_http = || std::io::Error::new(std::io::ErrorKind::InvalidData, "this is not HTTP");
    Ok((status.ok_or_else(not_http)?, body.to_owned()))
}
