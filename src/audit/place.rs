//! Where the store's files lie. SQLite goes on writing to a file that was removed or replaced, the database or the
//! write-ahead log beside it: what is written then is gone when the process ends.

use std::{
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// A file, by its path and by what it is.
#[derive(Clone, Debug)]
pub(super) struct Place {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Place {
    /// Takes the file that is there now.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = path.metadata()?;
        Ok(Self { path: path.to_owned(), device: metadata.dev(), inode: metadata.ino() })
    }

    /// Takes an open database and its write-ahead log, if it has one, which stays the same as long as a connection is
    /// open.
    pub fn of_database(file: &Path) -> io::Result<Vec<Self>> {
        let mut log = file.canonicalize()?.into_os_string();
        log.push("-wal");
        let log = Path::new(&log);
        let log = log.exists().then(|| Self::of(log)).transpose()?;
        Ok(std::iter::once(Self::of(file)?).chain(log).collect())
    }

    /// Whether it is still the same file. A thread that may block asks: the disk may hang.
    pub async fn is_held(&self) -> bool {
        let Self { path, device, inode } = self.clone();
        let same = move || {
            let metadata = path.metadata()?;
            Ok::<_, io::Error>((metadata.dev(), metadata.ino()) == (device, inode))
        };
        matches!(tokio::task::spawn_blocking(same).await, Ok(Ok(true)))
    }
}
