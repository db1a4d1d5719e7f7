//! The HTTP client: no redirect is followed, no proxy is asked, and no address is connected to where a cloud keeps its secrets.

use std::error::Error as _;
use std::time::Duration;

use reqwest::{Certificate, Client, ClientBuilder, Identity};

use super::address::Resolver;
use crate::sink::Fault;
use crate::sink::tls::Tls;

pub fn client(tls: Option<&Tls>, timeout: Duration, allow_link_local: bool) -> Result<ClientBuilder, Fault> {
    // The first one to be installed stays; they are all the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .user_agent(concat!("outboxd/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .http1_only()
        .timeout(timeout)
        .dns_resolver(Resolver { allow_link_local });
    let Some(tls) = tls else { return Ok(builder) };
    let read =
        |path: &std::path::Path| std::fs::read(path).map_err(|error| unreadable(&path.display().to_string(), &error));
    if let Some(path) = &tls.ca_file {
        let roots = Certificate::from_pem_bundle(&read(path)?)
            .map_err(|error| unreadable(&path.display().to_string(), &error))?;
        builder = builder.tls_certs_only(roots);
    }
    if let Some(identity) = &tls.identity {
        let pem = [read(&identity.key_file)?, read(&identity.cert_file)?].join(&b'\n');
        let identity =
            Identity::from_pem(&pem).map_err(|error| unreadable(&identity.cert_file.display().to_string(), &error))?;
        builder = builder.identity(identity);
    }
    Ok(builder)
}

pub fn built(builder: ClientBuilder) -> Result<Client, Fault> {
    builder.build().map_err(|error| unreadable("the HTTP client cannot be made", &error))
}

fn unreadable(what: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::fatal(format!("{what}: {error}"))
}

/// Why a request came to nothing, without its address, which may hold a token.
pub fn told(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    match causes.pop() {
        _ if error.is_timeout() => "no answer in time".to_owned(),
        Some(cause) => cause,
        None => "the request failed".to_owned(),
    }
}
