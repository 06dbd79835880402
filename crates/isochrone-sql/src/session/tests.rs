//! Whole sessions on a store in memory: SQL text in, text out.

use super::*;

fn assert_send<T: Send>(_: T) {}

#[allow(dead_code, reason = "only has to compile")]
fn futures_can_move_between_threads(s: &mut Session, step: Step, p: &mut Portal, sink: &mut dyn crate::face::ScriptSink) {
    assert_send(s.step(step, true, sink));
    let _ = p;
}
