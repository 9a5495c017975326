//! Listing keys in byte order, also from services that list in another one.
//!
//! Keys order by bytes: `a-b/x` comes before `a/x`, because `-` comes before `/`. S3, Google and Azure list like that.
//! Services that keep objects in folders list folder by folder, so there `a/x` comes before `a-b/x`, and "what comes
//! after" means another set of keys. [`Walk`] brings their pages into our order.

use object_store::list::PaginatedListOptions;

use super::Bucket;
use super::failure::Failure;
use super::limits::Tries;
use crate::{Key, Prefix};

/// The largest page that every service gives.
const PAGE: usize = 1000;
/// Smaller pages are not worth their request.
const SMALL_PAGE: usize = 16;
/// Comes after whatever a key may go on with below a folder.
const BEHIND_ALL: &str = "~";

/// In which order a service lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// By bytes, as we do.
    Bytes,
    /// By the names of folders and files, one level after the other.
    Folders,
}

/// A service that lists by bytes did not.
#[derive(Debug, thiserror::Error)]
#[error("the service lists keys out of order")]
struct OutOfOrder;

/// At most `limit` keys below `prefix` and behind `start_after`, in byte order.
pub(super) async fn list(
    bucket: &Bucket,
    prefix: &Prefix,
    start_after: Option<&Key>,
    limit: usize,
) -> Result<Vec<Key>, Failure> {
    let (prefix, mut after) = (prefix.as_str(), start_after.map_or("", Key::as_str));
    if !after.starts_with(prefix) {
        if after > prefix {
            return Ok(Vec::new());
        }
        after = "";
    }
    if limit == 0 {
        return Ok(Vec::new());
    }
    match bucket.order {
        Order::Bytes => in_their_order(bucket, prefix, after, limit).await,
        Order::Folders => {
            let mut walk = Walk { bucket, after, limit, keys: Vec::new() };
            walk.folder(prefix.to_owned()).await?;
            Ok(walk.keys)
        }
    }
}

/// The first page below `prefix`, in the order of the service.
pub(super) async fn raw(bucket: &Bucket, prefix: &Prefix) -> Result<Vec<Key>, Failure> {
    Ok(bucket.page(prefix.as_str(), &From::After(String::new()), PAGE).await?.keys)
}

async fn in_their_order(bucket: &Bucket, prefix: &str, after: &str, limit: usize) -> Result<Vec<Key>, Failure> {
    let mut keys: Vec<Key> = Vec::new();
    let mut from = From::After(after.to_owned());
    loop {
        let page = bucket.page(prefix, &from, limit - keys.len()).await?;
        for key in page.keys {
            // Some services do not know where to begin, and begin at the beginning.
            if key.as_str() > after {
                if keys.last().is_some_and(|last| *last >= key) {
                    return Err(Failure::Other(Box::new(OutOfOrder)));
                }
                keys.push(key);
            }
        }
        match page.next {
            Some(token) if keys.len() < limit => from = From::Token(token),
            _ => break,
        }
    }
    keys.truncate(limit);
    Ok(keys)
}

/// Where a page begins.
enum From {
    /// Behind a name, which need not be there; empty: at the beginning.
    After(String),
    /// Where the page before it ended.
    Token(String),
}

struct Page {
    keys: Vec<Key>,
    /// There is more.
    next: Option<String>,
}

impl Bucket {
    /// A page of keys, as the service orders them.
    async fn page(&self, prefix: &str, from: &From, limit: usize) -> Result<Page, Failure> {
        let mut options = PaginatedListOptions { max_keys: Some(limit.min(PAGE)), ..PaginatedListOptions::default() };
        match from {
            From::After(after) if after.is_empty() => {}
            From::After(after) => options.offset = Some(format!("{}{after}", self.prefix)),
            From::Token(token) => options.page_token = Some(token.clone()),
        }
        let ours = self.prefix.as_str();
        let whole = format!("{ours}{prefix}");
        let asked = Some(whole.as_str()).filter(|whole| !whole.is_empty());
        let objects = self.client.objects();
        let page = Tries::small().idempotent(|| objects.list_paginated(asked, options.clone())).await?;
        let names = page.result.objects.iter().filter_map(|meta| meta.location.as_ref().strip_prefix(ours));
        // What somebody else put there is not ours to show.
        let keys = names.filter_map(|name| Key::parse(name).ok()).collect();
        Ok(Page { keys, next: page.page_token.filter(|token| !token.is_empty()) })
    }
}

/// A walk through folders in byte order.
struct Walk<'a> {
    bucket: &'a Bucket,
    after: &'a str,
    limit: usize,
    keys: Vec<Key>,
}

/// A folder that comes after its siblings whose names go on with `-` or `.`, and so waits for them.
struct Held {
    name: String,
    /// All that is in it, sorted, or `None` if that is not read yet.
    keys: Option<Vec<Key>>,
}

impl Walk<'_> {
    /// Goes through `folder`, which is empty or ends with `/`.
    async fn folder(&mut self, folder: String) -> Result<(), Failure> {
        let mut held: Vec<Held> = Vec::new();
        let mut from = String::new();
        if let Some(inner) = self.after.strip_prefix(folder.as_str()).filter(|inner| !inner.is_empty()) {
            let (name, within) = inner.split_once('/').map_or((inner, false), |(name, _)| (name, true));
            // The service has listed these before, and we have not.
            let shorter = name.match_indices(['-', '.']).map(|(at, _)| &name[..at]);
            held.extend(shorter.map(|name| Held { name: name.to_owned(), keys: None }));
            if within {
                Box::pin(self.folder(format!("{folder}{name}/"))).await?;
            } else {
                held.push(Held { name: name.to_owned(), keys: None });
            }
            from = format!("{folder}{name}/{BEHIND_ALL}");
        }
        while !self.is_full() {
            let size = (self.limit + 1).clamp(SMALL_PAGE, PAGE);
            let page = self.bucket.page(&folder, &From::After(from), size).await?;
            let last = page.next.is_none();
            let mut children = children(&folder, page.keys);
            let Some(end) = children.last_mut() else { break };
            from = format!("{folder}{}", end.name);
            if let Some(keys) = &mut end.below {
                from = format!("{from}/{BEHIND_ALL}");
                if !last {
                    // There may be more in it than the page has.
                    *keys = None;
                }
            }
            for child in children {
                self.child(&folder, child, &mut held).await?;
            }
            if last {
                break;
            }
        }
        self.release(&folder, &mut held, |_| false).await
    }

    async fn child(&mut self, folder: &str, child: Child, held: &mut Vec<Held>) -> Result<(), Failure> {
        let name = child.name;
        let path = format!("{folder}{name}/");
        if child.below.is_some() && !self.after.starts_with(&path) && *path < *self.after {
            return Ok(());
        }
        let goes_on = |held: &Held| name.strip_prefix(&held.name).is_some_and(|rest| rest.starts_with(['-', '.']));
        self.release(folder, held, goes_on).await?;
        match child.below {
            Some(keys) => held.push(Held { name, keys }),
            None => self.emit(child.file),
        }
        Ok(())
    }

    /// Goes through the folders that wait, the last one first, until one has to wait on.
    async fn release(
        &mut self,
        folder: &str,
        held: &mut Vec<Held>,
        waits: impl Fn(&Held) -> bool,
    ) -> Result<(), Failure> {
        while !self.is_full()
            && let Some(next) = held.pop_if(|held| !waits(held))
        {
            match next.keys {
                Some(keys) => self.emit(keys),
                None => Box::pin(self.folder(format!("{folder}{}/", next.name))).await?,
            }
        }
        Ok(())
    }

    fn emit(&mut self, keys: impl IntoIterator<Item = Key>) {
        let room = self.limit - self.keys.len();
        self.keys.extend(keys.into_iter().filter(|key| key.as_str() > self.after).take(room));
    }

    fn is_full(&self) -> bool {
        self.keys.len() >= self.limit
    }
}

/// A file or a folder, one level below another folder.
struct Child {
    name: String,
    /// The key, if it is a file.
    file: Option<Key>,
    /// If it is a folder: all that is in it, sorted, or `None` if that is not known.
    below: Option<Option<Vec<Key>>>,
}

/// The keys of a page, sorted into what is directly in `folder`.
fn children(folder: &str, keys: Vec<Key>) -> Vec<Child> {
    let mut children: Vec<Child> = Vec::new();
    for key in keys {
        let Some(inner) = key.as_str().strip_prefix(folder) else { continue };
        let Some((name, _)) = inner.split_once('/') else {
            children.push(Child { name: inner.to_owned(), file: Some(key), below: None });
            continue;
        };
        match children.last_mut() {
            Some(Child { name: last, below: Some(Some(keys)), .. }) if last == name => keys.push(key),
            _ => children.push(Child { name: name.to_owned(), file: None, below: Some(Some(vec![key])) }),
        }
    }
    for keys in children.iter_mut().filter_map(|child| child.below.as_mut()?.as_mut()) {
        keys.sort_unstable();
    }
    children
}
