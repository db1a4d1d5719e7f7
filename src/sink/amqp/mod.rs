//! amqp
use super::*;
#[derive(Clone, Debug)]
pub struct Settings;
pub struct Amqp;
impl Amqp { pub fn new(_: Settings, _: Port) -> Self { Self } }
impl Sink for Amqp {
    fn check(&mut self, _: Duration) -> BoxFuture<'_, Result<(), Fault>> { todo!() }
    fn send(&mut self, _: Arc<Flight>) {}
    fn close(self: Box<Self>) -> BoxFuture<'static, ()> { todo!() }
}
