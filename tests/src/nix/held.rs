//! Quick ways to fill a store with paths that it did not build: as many, as large and as odd as a story wants.

use std::fs;

use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use super::{NixStoreFixture, lines, only};
use crate::process::finish;

/// Bytes before and behind the contents in a NAR of one file.
const NAR_OF_FILE_BYTES: u64 = 112;
/// Contents in a NAR are padded to a multiple of this.
const NAR_UNIT_BYTES: u64 = 8;
/// Files that one command adds: a command line has room for only so many arguments.
const ADDED_AT_ONCE: usize = 500;

impl NixStoreFixture {
    /// Puts `count` paths of one file each into the store, as if they had been built here, and returns them. Their contents
    /// do not compress; the same `seed` makes the same paths. A NAR has `nar_bytes` bytes: a multiple of 8, at least 120.
    ///
    /// # Panics
    /// When no NAR has that size, or Nix refuses.
    #[track_caller]
    pub fn hold_noise(&self, count: usize, nar_bytes: u64, seed: u64) -> Vec<String> {
        assert!(
            nar_bytes > NAR_OF_FILE_BYTES && nar_bytes.is_multiple_of(NAR_UNIT_BYTES),
            "no NAR has {nar_bytes} bytes"
        );
        let sources = self.dir.join(format!("noise-{seed}"));
        fs::create_dir_all(&sources).expect("a directory in the story's own");
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut contents = vec![0; usize::try_from(nar_bytes - NAR_OF_FILE_BYTES).expect("a NAR fits into memory")];
        let files = (0..count).map(|number| {
            rng.fill_bytes(&mut contents);
            let file = sources.join(format!("noise-{seed}-{number}"));
            fs::write(&file, &contents).expect("a file in the story's own directory");
            file
        });
        let files: Vec<_> = files.collect();
        let added = files.chunks(ADDED_AT_ONCE).flat_map(|some| {
            let mut command = self.nix("nix-store");
            lines(&finish(command.arg("--add").args(some)).expect_success("nix-store --add"))
        });
        let paths = added.collect();
        fs::remove_dir_all(&sources).expect("our own directory");
        self.call_built();
        paths
    }

    /// Puts a path that is one file of `file_bytes` zeros into the store, as if it had been built here.
    ///
    /// # Panics
    /// When Nix refuses.
    #[track_caller]
    pub fn hold_hole(&self, file_bytes: u64) -> String {
        let file = self.dir.join(format!("hole-{file_bytes}"));
        fs::File::create(&file).and_then(|it| it.set_len(file_bytes)).expect("a file in the story's own directory");
        let mut command = self.nix("nix-store");
        let path = only(lines(&finish(command.arg("--add").arg(&file)).expect_success("nix-store --add")));
        fs::remove_file(&file).expect("our own file");
        self.call_built();
        path
    }

    /// Puts a path into the store that is a directory of `count` empty files, as if it had been built here.
    ///
    /// # Panics
    /// When Nix refuses.
    #[track_caller]
    pub fn hold_entries(&self, count: usize) -> String {
        let directory = self.dir.join(format!("entries-{count}"));
        fs::create_dir_all(&directory).expect("a directory in the story's own");
        for number in 0..count {
            fs::File::create(directory.join(format!("entry-{number:06}")))
                .expect("a file in the story's own directory");
        }
        let mut command = self.nix("nix-store");
        let path = only(lines(&finish(command.arg("--add").arg(&directory)).expect_success("nix-store --add")));
        fs::remove_dir_all(&directory).expect("our own directory");
        self.call_built();
        path
    }

    /// Marks every path that was added to the store as built in it.
    ///
    /// # Panics
    /// When the database cannot be written.
    #[track_caller]
    fn call_built(&self) {
        self.sql("update ValidPaths set ultimate = 1, ca = null where ca is not null and path not like '%.drv'");
    }

    /// Makes `path` refer to `count` new paths that exist in the database alone.
    ///
    /// # Panics
    /// When the database cannot be written.
    #[track_caller]
    pub fn refer_to_many(&self, path: &str, count: usize) {
        self.sql(&format!(
            "begin; \
             with recursive n(i) as (select 1 union all select i + 1 from n where i < {count}) \
             insert into ValidPaths (path, hash, registrationTime, narSize, ultimate) \
             select printf('/nix/store/%032d-a-path-with-a-name-of-no-odd-length', i), 'sha256:' || printf('%064d', i), 1, 1000, 1 \
             from n; \
             insert into Refs (referrer, reference) \
             select (select id from ValidPaths where path = '{path}'), id from ValidPaths where path like '%-of-no-odd-length'; \
             commit"
        ));
    }
}
