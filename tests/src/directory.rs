//! A directory for one test.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A private directory, removed with its content when dropped.
pub struct Directory(PathBuf);

impl Directory {
    /// Create one in the system's temporary directory.
    pub fn create() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("test-{}", uuid::Uuid::new_v4()));
        fs::create_dir(&path)?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The directory `name` in it, created where it is not there yet.
    pub fn with(&self, name: &str) -> io::Result<PathBuf> {
        let path = self.0.join(name);
        fs::create_dir_all(&path)?;
        Ok(path)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left over is the system's to clean.
        let _ = fs::remove_dir_all(&self.0);
    }
}
