//! A bucket of a server that speaks S3.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig};

use crate::secret::Secret;

const CONNECT_MAX: Duration = Duration::from_secs(5);
const RETRIES: usize = 3;

#[derive(Debug)]
pub struct Bucket {
    pub name: String,
    /// Without slashes around it.
    pub prefix: String,
    /// `None`: AWS's own.
    pub endpoint: Option<String>,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: Secret,
    pub session_token: Option<Secret>,
    /// Sections are compared by what they print, and secrets print nothing.
    #[expect(dead_code, reason = "it is printed")]
    pub secrets_mark: u64,
    pub virtual_hosted: bool,
    pub ca_file: Option<PathBuf>,
}

/// Another number for other secrets, of use in this process alone.
pub fn mark(secrets: &[Option<&Secret>]) -> u64 {
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let revealed: Vec<_> = secrets.iter().map(|secret| secret.map(Secret::reveal)).collect();
    KEY.get_or_init(RandomState::new).hash_one(revealed)
}

impl Bucket {
    pub fn prefix(&self) -> Path {
        Path::from(self.prefix.as_str())
    }

    /// Talks to nobody yet.
    pub fn store(&self, timeout: Duration) -> Result<Arc<dyn ObjectStore>, String> {
        // The first one to be installed stays; they are all the same one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let is_plain = self.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
        let mut client = ClientOptions::new()
            .with_timeout(timeout)
            .with_connect_timeout(CONNECT_MAX.min(timeout))
            .with_allow_http(is_plain);
        if let Some(path) = &self.ca_file {
            let told = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
            let pem = std::fs::read(path).map_err(|error| told(&error))?;
            for certificate in Certificate::from_pem_bundle(&pem).map_err(|error| told(&error))? {
                client = client.with_root_certificate(certificate);
            }
        }
        let backoff = BackoffConfig {
            init_backoff: (timeout / 100).min(Duration::from_millis(200)),
            max_backoff: (timeout / 8).min(Duration::from_secs(5)),
            base: 3.0,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&self.name)
            .with_region(&self.region)
            .with_access_key_id(&self.access_key_id)
            .with_secret_access_key(self.secret_access_key.reveal())
            .with_virtual_hosted_style_request(self.virtual_hosted)
            .with_client_options(client)
            // Not every server knows how to delete several at once.
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig { backoff, max_retries: RETRIES, retry_timeout: timeout });
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint);
        }
        if let Some(token) = &self.session_token {
            builder = builder.with_token(token.reveal());
        }
        Ok(Arc::new(builder.build().map_err(|error| error.to_string())?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_secret_has_another_mark_and_none_is_printed() {
        let (one, other) = (Secret::new("one"), Secret::new("other"));
        assert_eq!(mark(&[Some(&one), None]), mark(&[Some(&one), None]));
        assert_ne!(mark(&[Some(&one), None]), mark(&[Some(&other), None]));
        assert_ne!(mark(&[Some(&one), None]), mark(&[Some(&one), Some(&other)]));
    }
}
