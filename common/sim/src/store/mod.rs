//! A store over another one, with faults on demand: what a client sees of a bad network and of a store with a bad day.
//!
//! Promises: a request suffers at most one fault; without one it passes through unchanged; every method of the trait is
//! passed on, none falls back to a default; requests are counted. Never: invents an object, or loses one that it took.

mod fault;
mod multipart;
mod parts;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{BoxStream, StreamExt as _, TryStreamExt as _};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use tokio::sync::watch;

pub use fault::{Call, Chaos, Distance, Fault, When};
use multipart::FaultyUpload;

const NAME: &str = "faulty";

/// One client's view of a store. Clones are the same view; several views of one store stand for several processes.
#[derive(Debug, Clone)]
pub struct FaultyStore {
    below: Arc<dyn ObjectStore>,
    control: Arc<Control>,
    uploads: Arc<parts::Uploads>,
}

#[derive(Debug)]
struct Control {
    state: Mutex<State>,
    /// Counts releases; who hangs waits for the next one.
    releases: watch::Sender<u64>,
    /// How many hang at this moment.
    hanging: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    script: Vec<(When, Fault)>,
    chaos: Option<Chaos>,
    distance: Option<Distance>,
    calls: Vec<(Call, String)>,
    late: Vec<(Path, PutPayload, PutOptions)>,
}

impl Control {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fault(&self, call: Call, key: &str) -> Option<Fault> {
        let mut state = self.state();
        state.calls.push((call, key.to_owned()));
        let scripted = state.script.iter_mut().find_map(|(when, fault)| when.strikes(call, key).then_some(*fault));
        scripted.or_else(|| state.chaos.as_mut()?.draw(call))
    }

    async fn hang(&self) {
        let mut releases = self.releases.subscribe();
        releases.mark_unchanged();
        let _hanging = Hanging::new(&self.hanging);
        // An error means that the store itself is gone.
        let _ = releases.changed().await;
    }

    /// There and back, where the store is far away.
    async fn travel<T>(&self, fault: Option<Fault>, key: &str, request: impl Future<Output = Result<T>>) -> Result<T> {
        let way = self.state().distance.as_mut().map(Distance::draw);
        let Some((clock, there)) = way else { return self.suffer(fault, key, request).await };
        clock.sleep(there).await;
        let answer = self.suffer(fault, key, request).await;
        clock.sleep(there).await;
        answer
    }

    /// Runs a request with whatever fault strikes it.
    async fn run<T>(&self, call: Call, key: &str, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.travel(self.fault(call, key), key, request).await
    }

    async fn suffer<T>(&self, fault: Option<Fault>, key: &str, request: impl Future<Output = Result<T>>) -> Result<T> {
        match fault {
            None | Some(Fault::Lagging) => request.await,
            Some(Fault::FailBefore | Fault::Late) => Err(unavailable("no answer")),
            Some(Fault::FailAfter) => {
                let _ = request.await;
                Err(unavailable("the answer was lost"))
            }
            Some(Fault::Conflict) => {
                Err(Error::AlreadyExists { path: key.to_owned(), source: "409, a conflicting request".into() })
            }
            Some(Fault::Deny) => Err(Error::PermissionDenied { path: key.to_owned(), source: "403, AccessDenied".into() }),
            Some(Fault::HangBefore) => {
                self.hang().await;
                request.await
            }
            Some(Fault::HangAfter) => {
                let answer = request.await;
                self.hang().await;
                answer
            }
        }
    }
}

/// Counts one that hangs, until it is released or dropped.
struct Hanging<'a>(&'a watch::Sender<u64>);

impl<'a> Hanging<'a> {
    fn new(count: &'a watch::Sender<u64>) -> Self {
        count.send_modify(|count| *count += 1);
        Self(count)
    }
}

impl Drop for Hanging<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

fn unavailable(what: &'static str) -> Error {
    Error::Generic { store: NAME, source: what.into() }
}

impl Default for FaultyStore {
    fn default() -> Self {
        Self::over(Arc::new(InMemory::new()))
    }
}

impl FaultyStore {
    /// A view of `below`, without faults.
    pub fn over(below: Arc<dyn ObjectStore>) -> Self {
        let (releases, hanging) = (watch::Sender::new(0), watch::Sender::new(0));
        let control = Arc::new(Control { state: Mutex::default(), releases, hanging });
        Self { below, control, uploads: Arc::default() }
    }

    /// Another view of the same store, with faults of its own: another process.
    #[must_use]
    pub fn other_view(&self) -> Self {
        Self::over(Arc::clone(&self.below))
    }

    /// The store below, which never fails: for looking at what is really there.
    pub fn below(&self) -> Arc<dyn ObjectStore> {
        Arc::clone(&self.below)
    }

    /// Writes a fault down. Where several would strike, the one that was written down first does.
    pub fn inject(&self, when: When, fault: Fault) {
        self.control.state().script.push((when, fault));
    }

    /// Faults by chance from now on.
    pub fn unleash(&self, chaos: Chaos) {
        self.control.state().chaos = Some(chaos);
    }

    /// Every request takes its time from now on.
    pub fn move_away(&self, distance: Distance) {
        self.control.state().distance = Some(distance);
    }

    /// No more faults. Who hangs goes on hanging.
    pub fn heal(&self) {
        let mut state = self.control.state();
        state.script.clear();
        state.chaos = None;
    }

    /// Lets everybody go who hangs at this moment.
    pub fn release(&self) {
        self.control.releases.send_modify(|count| *count += 1);
    }

    /// How many requests hang at this moment.
    pub fn hanging(&self) -> u64 {
        *self.control.hanging.borrow()
    }

    /// Waits until a request hangs.
    pub async fn until_hanging(&self) {
        let mut hanging = self.control.hanging.subscribe();
        // Cannot fail: the sender lives as long as this view.
        let _ = hanging.wait_for(|count| *count > 0).await;
    }

    /// The requests that were late arrive now. Answers how many of them took effect.
    pub async fn land(&self) -> usize {
        let late = std::mem::take(&mut self.control.state().late);
        let mut landed = 0;
        for (path, payload, options) in late {
            landed += usize::from(self.below.put_opts(&path, payload, options).await.is_ok());
        }
        landed
    }

    /// How many requests of a kind were made to keys that contain `part`, those that failed included.
    pub fn calls(&self, call: Call, part: &str) -> usize {
        self.control.state().calls.iter().filter(|(of, key)| *of == call && key.contains(part)).count()
    }

    /// How many requests were made.
    pub fn calls_made(&self) -> usize {
        self.control.state().calls.len()
    }

    async fn run<T>(&self, call: Call, key: &Path, request: impl Future<Output = Result<T>>) -> Result<T> {
        self.control.run(call, key.as_ref(), request).await
    }

    /// A listing fails as a whole, before its first entry. Or it lags.
    fn listing(
        &self,
        prefix: Option<&Path>,
        entries: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let control = Arc::clone(&self.control);
        let key = prefix.map(ToString::to_string).unwrap_or_default();
        let list = async move {
            let fault = control.fault(Call::List, &key);
            let shown = async { if fault == Some(Fault::Lagging) { without_the_last(entries).await } else { Ok(entries) } };
            control.suffer(fault, &key, shown).await
        };
        futures::stream::once(list).try_flatten().boxed()
    }
}

/// What two stores ago was still all.
async fn without_the_last(entries: BoxStream<'static, Result<ObjectMeta>>) -> Result<BoxStream<'static, Result<ObjectMeta>>> {
    let mut entries: Vec<ObjectMeta> = entries.try_collect().await?;
    let mut times: Vec<_> = entries.iter().map(|entry| entry.last_modified).collect();
    times.sort_unstable();
    if let Some(from) = times.iter().rev().take(2).next_back() {
        entries.retain(|entry| entry.last_modified < *from);
    }
    Ok(futures::stream::iter(entries.into_iter().map(Ok)).boxed())
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{NAME}({})", self.below)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let kept = (location.clone(), payload.clone(), options.clone());
        match self.control.fault(Call::Put, location.as_ref()) {
            Some(Fault::Late) => {
                self.control.state().late.push(kept);
                Err(unavailable("no answer"))
            }
            fault => self.control.travel(fault, location.as_ref(), self.below.put_opts(location, payload, options)).await,
        }
    }

    async fn put_multipart_opts(&self, location: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.run(Call::Begin, location, self.below.put_multipart_opts(location, options)).await?;
        Ok(Box::new(FaultyUpload::new(upload, Arc::clone(&self.control), location.to_string())))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.run(Call::Get, location, self.below.get_opts(location, options)).await
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        self.run(Call::Get, location, self.below.get_ranges(location, ranges)).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (below, control) = (Arc::clone(&self.below), Arc::clone(&self.control));
        let delete = move |location: Path| {
            let (below, control) = (Arc::clone(&below), Arc::clone(&control));
            async move {
                let one = futures::stream::iter([Ok(location.clone())]).boxed();
                let request = async { below.delete_stream(one).try_collect::<Vec<_>>().await };
                control.run(Call::Delete, location.as_ref(), request).await.map(|_| location)
            }
        };
        locations.and_then(delete).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix, self.below.list(prefix))
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        self.listing(prefix, self.below.list_with_offset(prefix, offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let key = prefix.cloned().unwrap_or_default();
        self.run(Call::List, &key, self.below.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.run(Call::Copy, to, self.below.copy_opts(from, to, options)).await
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.run(Call::Copy, to, self.below.rename_opts(from, to, options)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::multipart::MultipartStore as _;
    use object_store::{ObjectStoreExt as _, PutMode};

    fn create() -> PutOptions {
        PutOptions::from(PutMode::Create)
    }

    async fn put(store: &FaultyStore, key: &str) -> Result<PutResult> {
        store.put_opts(&Path::from(key), "x".into(), create()).await
    }

    async fn holds(store: &FaultyStore, key: &str) -> bool {
        store.below().head(&Path::from(key)).await.is_ok()
    }

    #[tokio::test]
    async fn a_fault_strikes_where_and_as_often_as_written_down() {
        let store = FaultyStore::default();
        store.inject(When::at(Call::Put).to("log/").after(1).times(2), Fault::FailBefore);
        for (key, passes) in [("log/0", true), ("data/0", true), ("log/1", false), ("log/2", false), ("log/3", true)] {
            assert_eq!(put(&store, key).await.is_ok(), passes, "{key}");
            assert_eq!(holds(&store, key).await, passes, "{key}");
        }
        assert_eq!(store.calls(Call::Put, "log/"), 4);
    }

    #[tokio::test]
    async fn a_lost_answer_is_a_failure_that_took_effect() {
        let store = FaultyStore::default();
        store.inject(When::at(Call::Put).once(), Fault::FailAfter);
        assert!(put(&store, "a").await.is_err());
        assert!(holds(&store, "a").await);
    }

    #[tokio::test]
    async fn a_conflict_takes_no_effect() {
        let store = FaultyStore::default();
        store.inject(When::at(Call::Put).once(), Fault::Conflict);
        assert!(matches!(put(&store, "a").await, Err(Error::AlreadyExists { .. })));
        assert!(!holds(&store, "a").await);
    }

    #[tokio::test]
    async fn a_late_request_lands_when_it_is_let_and_only_if_it_still_may() {
        let store = FaultyStore::default();
        store.inject(When::at(Call::Put).times(2), Fault::Late);
        assert!(put(&store, "a").await.is_err() && put(&store, "b").await.is_err());
        assert!(!holds(&store, "a").await);
        put(&store, "b").await.expect("no more faults");
        assert_eq!(store.land().await, 1, "the other key is taken");
        assert!(holds(&store, "a").await);
    }

    #[tokio::test]
    async fn a_listing_that_lags_leaves_out_what_came_last() {
        let store = FaultyStore::default();
        for key in ["a", "b", "c", "d"] {
            put(&store, key).await.expect("no fault yet");
        }
        let listed = async || store.list(None).map_ok(|entry| entry.location).try_collect::<Vec<_>>().await.expect("it answers");
        store.inject(When::always().once(), Fault::Lagging);
        let (lagging, whole) = (listed().await, listed().await);
        assert!(lagging.len() <= 2 && whole.len() == 4, "{lagging:?}");
        assert!(lagging.iter().all(|key| whole[..2].contains(key)), "{lagging:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_is_seen_and_released() {
        let store = FaultyStore::default();
        store.inject(When::at(Call::Put).once(), Fault::HangBefore);
        store.inject(When::at(Call::Put).once(), Fault::HangAfter);
        let views = [store.clone(), store.clone()];
        let tasks: Vec<_> = views
            .into_iter()
            .zip(["before", "after"])
            .map(|(view, key)| tokio::spawn(async move { put(&view, key).await }))
            .collect();
        crate::settle().await;
        assert_eq!((store.hanging(), holds(&store, "before").await, holds(&store, "after").await), (2, false, true));
        store.release();
        for task in tasks {
            assert!(task.await.expect("no panic").is_ok());
        }
        assert_eq!((store.hanging(), holds(&store, "before").await), (0, true));
    }

    #[tokio::test]
    async fn an_upload_suffers_on_its_parts_and_at_its_end() {
        let store = FaultyStore::default();
        store.inject(When::at(Call::Part).once(), Fault::FailBefore);
        store.inject(When::at(Call::Complete).once(), Fault::FailAfter);
        let mut upload = store.put_multipart(&Path::from("a")).await.expect("begins");
        assert!(upload.put_part("x".into()).await.is_err());
        upload.put_part("x".into()).await.expect("no more faults");
        assert!(upload.complete().await.is_err());
        assert!(holds(&store, "a").await);
    }

    #[tokio::test]
    async fn parts_by_number_are_repeated_until_the_upload_is_complete_or_forgotten() {
        let (store, key) = (FaultyStore::default(), Path::from("a"));
        let id = store.create_multipart(&key).await.expect("begins");
        let mut parts = Vec::new();
        for (number, text) in [(1, "b"), (0, "x"), (0, "a")] {
            parts.push(store.put_part(&key, &id, number, text.into()).await.expect("stored"));
        }
        store.inject(When::at(Call::Complete).once(), Fault::FailAfter);
        assert!(store.complete_multipart(&key, &id, vec![parts[2].clone(), parts[0].clone()]).await.is_err());
        let bytes = store.below().get(&key).await.expect("the answer was lost, not the object").bytes().await.expect("in memory");
        assert_eq!(&*bytes, b"ab");
        let again = store.complete_multipart(&key, &id, parts.split_off(1)).await;
        assert!(matches!(again, Err(Error::NotFound { .. })));
        let other = store.create_multipart(&key).await.expect("begins");
        store.forget_uploads();
        assert!(matches!(store.put_part(&key, &other, 0, "x".into()).await, Err(Error::NotFound { .. })));
    }

    #[tokio::test]
    async fn the_same_seed_brings_the_same_faults() {
        async fn story(seed: u64) -> Vec<bool> {
            let store = FaultyStore::default();
            let faults = vec![Fault::FailBefore, Fault::FailAfter, Fault::Conflict];
            store.unleash(Chaos { rng: fastrand::Rng::with_seed(seed), rate: 0.5, faults });
            let mut story = Vec::new();
            for number in 0..64 {
                story.push(put(&store, &number.to_string()).await.is_ok());
            }
            story
        }
        assert_eq!(story(7).await, story(7).await);
        assert_ne!(story(7).await, story(8).await);
    }
}
