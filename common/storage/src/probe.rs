//! Finds out at start-up whether a store keeps the promises that commits stand on.
//!
//! Promises: a store that accepts two creates of one key, or does not show what it stored, is refused with the reason; a
//! store that only fails to answer is not. Leaves one small object under `_archive/probe/`. Never: touches anything else.

use bytes::Bytes;
use futures::future::join_all;
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutOptions};
use tapedeck_common::{Clock, ErrorKind};

use crate::ids::fresh_uuid;
use crate::layout;
use crate::store::{Outcome, Store, StoreError, classify};

/// Creates of one key at once: stores that check first and store later were caught by fewer.
const CREATORS: usize = 16;

/// Words in a store's answer that no waiting cures.
const SETTINGS_ARE_WRONG: [&str; 7] = [
    "NoSuchBucket",
    "InvalidBucketName",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "redirect without LOCATION",
];

/// Tries the store. `Invalid` means that it must not be used, `Unavailable` that it did not say: try again.
pub async fn probe(store: &Store, clock: &dyn Clock, rng: &mut fastrand::Rng) -> Result<(), StoreError> {
    let probe = Probe { store, key: layout::archive_probe(&fresh_uuid(clock.now(), rng)) };
    let winner = probe.race().await?;
    probe.create_again().await?;
    probe.read_back(&winner).await?;
    probe.list().await
}

struct Probe<'a> {
    store: &'a Store,
    key: Path,
}

fn body(number: usize) -> Bytes {
    Bytes::from(format!("tapedeck probes the store, creator {number:02}\n"))
}

impl Probe<'_> {
    async fn create(&self, number: usize) -> object_store::Result<()> {
        let create = PutOptions::from(PutMode::Create);
        self.store.store.put_opts(&self.key, body(number).into(), create).await.map(|_| ())
    }

    /// Exactly one of many creates may win, and its bytes are the ones that stay.
    async fn race(&self) -> Result<Bytes, StoreError> {
        let answers = join_all((0..CREATORS).map(|number| self.create(number))).await;
        let winners: Vec<usize> = (0..CREATORS).filter(|number| answers[*number].is_ok()).collect();
        if winners.len() > 1 {
            let what = format!("it let {} of {CREATORS} writers create the same object", winners.len());
            return Err(self.refused(&what));
        }
        let failures = answers.into_iter().filter_map(Result::err).filter(|error| classify(error) != Outcome::Exists);
        if let Some(error) = failures.into_iter().next() {
            return Err(self.failed("create", error));
        }
        // None won, yet all were told that it exists: a lost reply or a conflict. Nothing is proved either way.
        let winner = winners.first().ok_or_else(|| self.unsettled("every create was answered with a conflict"))?;
        Ok(body(*winner))
    }

    async fn create_again(&self) -> Result<(), StoreError> {
        match self.create(CREATORS).await {
            Ok(()) => Err(self.refused("it lets an object be created that exists: it ignores If-None-Match")),
            Err(error) if classify(&error) == Outcome::Exists => Ok(()),
            Err(error) => Err(self.failed("create", error)),
        }
    }

    async fn read_back(&self, winner: &Bytes) -> Result<(), StoreError> {
        let read = async { self.store.patient.get(&self.key).await?.bytes().await };
        let found = match read.await {
            Ok(found) => found,
            Err(error) if classify(&error) == Outcome::NotFound => {
                return Err(self.refused("it does not find an object right after storing it"));
            }
            Err(error) => return Err(self.failed("read", error)),
        };
        if found != *winner {
            return Err(self.refused("it told one writer that its create had won, and kept the bytes of another"));
        }
        let part = self.store.patient.get_range(&self.key, 9..15).await.map_err(|error| self.failed("read", error))?;
        if part != winner.slice(9..15) {
            return Err(self.refused("it answers a request for a part of an object with something else"));
        }
        Ok(())
    }

    async fn list(&self) -> Result<(), StoreError> {
        // From just before the key, so that the probes of years need not be listed.
        let before = Path::from(self.key.as_ref().trim_end_matches(|c: char| c.is_ascii_hexdigit()));
        let folder = self.key.parent();
        let mut listed = self.store.patient.list_with_offset(folder.as_ref(), &before).boxed();
        while let Some(object) = listed.try_next().await.map_err(|error| self.failed("list", error))? {
            if object.location == self.key {
                return Ok(());
            }
        }
        Err(self.refused("it does not list an object right after storing it"))
    }

    fn refused(&self, what: &str) -> StoreError {
        let text = format!(
            "the store {} cannot hold an archive: {what} (probed with {}); commits need a store that creates an object \
             only if it is absent and shows at once what it stored",
            self.store.url, self.key
        );
        StoreError::new(ErrorKind::Invalid, text)
    }

    fn unsettled(&self, what: &str) -> StoreError {
        let text = format!("the store {} could not be probed with {}: {what}", self.store.url, self.key);
        StoreError::new(ErrorKind::Unavailable, text)
    }

    fn failed(&self, operation: &str, error: object_store::Error) -> StoreError {
        let text = error.to_string();
        let wrong = SETTINGS_ARE_WRONG.iter().any(|word| text.contains(word));
        let kind = match classify(&error) {
            Outcome::Denied => ErrorKind::Invalid,
            _ if wrong => ErrorKind::Invalid,
            _ => ErrorKind::Unavailable,
        };
        let what = match kind {
            ErrorKind::Invalid => format!("the store {} refuses to {operation} {}", self.store.url, self.key),
            _ => format!("the store {} failed to {operation} {}", self.store.url, self.key),
        };
        StoreError { what, kind, source: Some(Box::new(error)) }
    }
}
