//! Gives the dashboard's folder to `src/dashboard.rs`, built or not: cargo needs no Node.

use std::{env, fs, io};

const FOLDER: &str = "dashboard/dist";

fn main() -> io::Result<()> {
    // A folder that is missing would have cargo build all of this anew each time.
    fs::create_dir_all(FOLDER)?;
    // What a release holds is made anew with the dashboard; a debug build reads the folder as it runs.
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    println!("cargo::rerun-if-changed={}", if is_release { FOLDER } else { "build.rs" });
    Ok(())
}
