//! Where the store's files lie. SQLite goes on writing to a file that was removed or replaced, the database or the
//! write-ahead log beside it: what is written then is gone when the process ends.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// Files, each by its path and by what it is.
#[derive(Clone, Debug)]
pub(super) struct Place(Vec<Held>);

#[derive(Clone, Debug)]
struct Held {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    /// Takes an open database and its write-ahead log, if it has one, which stays the same as long as a connection is
    /// open.
    pub fn of(database: &Path) -> io::Result<Self> {
        let mut log = database.canonicalize()?.into_os_string();
        log.push("-wal");
        let log = PathBuf::from(log);
        let log = log.exists().then(|| Held::of(log)).transpose()?;
        Ok(Self(std::iter::once(Held::of(database.to_owned())?).chain(log).collect()))
    }

    /// Whether they are still the same files. A thread that may block asks: the disk may hang.
    pub async fn is_held(&self) -> bool {
        let Self(files) = self.clone();
        let asking = tokio::task::spawn_blocking(move || files.iter().all(Held::is_there));
        asking.await.unwrap_or(false)
    }
}

impl Held {
    fn of(path: PathBuf) -> io::Result<Self> {
        let metadata = path.metadata()?;
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino() })
    }

    fn is_there(&self) -> bool {
        self.path.metadata().is_ok_and(|now| (now.dev(), now.ino()) == (self.device, self.inode))
    }
}
