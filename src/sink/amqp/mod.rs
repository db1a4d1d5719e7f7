//! amqp (a stand-in)
use super::format::{Format, HeaderField};
use super::template::Template;
use super::*;
use crate::secret::Secret;
use std::path::PathBuf;
#[derive(Clone, Debug)]
pub struct Settings {
    pub uri: Secret,
    pub exchange: Template,
    pub routing_key: Template,
    pub format: Format,
    pub headers: Vec<HeaderField>,
    pub persistent: bool,
    pub mandatory: bool,
    pub declare: bool,
    pub tls: Option<Tls>,
    pub heartbeat: Duration,
}
#[derive(Clone, Debug)]
pub struct Tls {
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}
pub struct Amqp;
impl Amqp {
    pub fn new(_: Settings, _: Port) -> Self {
        Amqp
    }
}
impl Sink for Amqp {
    fn check(&mut self, _: Duration) -> BoxFuture<'_, Result<(), Fault>> {
        todo!()
    }
    fn send(&mut self, _: Arc<Flight>) {}
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> {
        todo!()
    }
}
