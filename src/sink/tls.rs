//! The files that protect a connection; whether TLS is used at all, each sink's settings say.

use std::path::PathBuf;

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Tls {
    /// PEM; `None` = the system's roots.
    pub ca_file: Option<PathBuf>,
    /// For brokers that ask for a client's certificate.
    pub identity: Option<Identity>,
}

/// The client's own certificate and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cert_file: PathBuf,
    pub key_file: PathBuf,
}

impl Tls {
    pub fn files(&self) -> Vec<PathBuf> {
        let own = self.identity.iter().flat_map(|identity| [&identity.cert_file, &identity.key_file]);
        self.ca_file.iter().chain(own).cloned().collect()
    }
}
