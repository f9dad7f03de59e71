//! The scripted CLI: what `CLAUDE_BIN` names in load and fault tests.

fn main() {
    tests::fake_claude::run()
}
