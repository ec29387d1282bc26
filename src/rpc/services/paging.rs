//! Pages of lists (AIP-158): every list that can grow is returned in parts that each gRPC client accepts.
//!
//! A list is ordered by a key that does not change, and a token names the key after which the next page begins. No
//! snapshot is kept. An element that is added between two pages appears if its key is after the token's key. An element
//! that stays in the list appears exactly once. A page has at most as many elements as the client asked for, and always
//! ends before it exceeds the message size that clients accept by default.
//!
//! Left out: watches, whose frames have their own limit (`watch`).

use std::ops::Bound;

use data_encoding::BASE64URL_NOPAD;
use prost::Message;

use crate::rpc::translate::status::ErrorStatus;

/// The most bytes of one page. By default gRPC clients accept messages of 4 MiB. The other 64 KiB are for the token,
/// and for a single element that is larger than a page.
pub(super) const MAX_PAGE_BYTES: usize = (4 << 20) - (64 << 10);

/// The most bytes of tag and length before an element of a repeated field: a tag of one or two bytes, a length of up to
/// four.
const ELEMENT_COST: usize = 6;

/// The most characters of a token. The longest one has a client id of 64 bytes and a registration id, which is far
/// less.
const MAX_TOKEN: usize = 512;

/// A request for one page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PageRequest {
    /// The most elements of the page.
    size: usize,
    /// The page begins after this key. `None`: with the first element.
    after: Option<String>,
}

impl PageRequest {
    /// Reads the fields `page_size` and `page_token` of a request.
    pub(super) fn new(size: i32, token: &str) -> Result<Self, ErrorStatus> {
        let size = match usize::try_from(size) {
            Ok(0) => usize::MAX,
            Ok(size) => size,
            Err(_) => {
                let problem = "must not be negative; leave it out to get as many elements as fit one answer";
                return Err(ErrorStatus::field("page_size", problem));
            }
        };
        let after = match token {
            "" => None,
            token => Some(decode(token).ok_or_else(|| {
                let problem = "is not a token of this list; send next_page_token of the previous answer, or leave it \
                               out to begin with the first page";
                ErrorStatus::field("page_token", problem)
            })?),
        };
        Ok(Self { size, after })
    }

    /// Returns this page of `items`, ordered by `key` and translated by `show`, and the token of the next page. The
    /// token is empty after the last page.
    pub(super) fn of<T, M: Message>(
        &self,
        mut items: Vec<T>,
        key: impl Fn(&T) -> String,
        show: impl Fn(&T) -> M,
    ) -> (Vec<M>, String) {
        items.sort_by_cached_key(&key);
        let begin = match &self.after {
            Some(after) => items.partition_point(|item| key(item) <= *after),
            None => 0,
        };
        let mut page: Vec<M> = Vec::new();
        let (mut bytes, mut last) = (0_usize, String::new());
        for item in items.get((Bound::Included(begin), Bound::Unbounded)).unwrap_or_default() {
            let shown = show(item);
            bytes = bytes.saturating_add(shown.encoded_len()).saturating_add(ELEMENT_COST);
            // A page has at least one element, of any size. With an empty page the client would ask for the same one
            // again.
            if page.len() >= self.size || (bytes > MAX_PAGE_BYTES && !page.is_empty()) {
                return (page, BASE64URL_NOPAD.encode(last.as_bytes()));
            }
            last = key(item);
            page.push(shown);
        }
        (page, String::new())
    }
}

fn decode(token: &str) -> Option<String> {
    let bytes = (token.len() <= MAX_TOKEN).then(|| BASE64URL_NOPAD.decode(token.as_bytes()).ok())??;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::proto::Capability;

    fn items(count: u32) -> Vec<u32> {
        // In descending order, so that `of` has to sort.
        (0..count).rev().collect()
    }

    fn show(bytes: usize) -> impl Fn(&u32) -> Capability {
        move |n| Capability { name: "x".repeat(bytes), version: *n }
    }

    /// Returns all pages of a list, one after the other.
    fn pages(count: u32, size: i32, bytes: usize) -> Vec<Vec<u32>> {
        let (mut pages, mut token) = (Vec::new(), String::new());
        loop {
            let request = PageRequest::new(size, &token).unwrap();
            let (page, next) = request.of(items(count), |n| format!("{n:08}"), show(bytes));
            let encoded: usize = page.iter().map(|one| one.encoded_len() + ELEMENT_COST).sum();
            assert!(page.len() == 1 || encoded <= MAX_PAGE_BYTES, "{encoded}");
            pages.push(page.iter().map(|one| one.version).collect());
            token = next;
            if token.is_empty() {
                return pages;
            }
        }
    }

    #[test]
    fn pages_make_the_whole_list_in_order_once() {
        for size in [0, 1, 7, 100, 1_000, i32::MAX] {
            let pages = pages(100, size, 10);
            let all: Vec<u32> = pages.iter().flatten().copied().collect();
            assert_eq!(all, (0..100).collect::<Vec<_>>(), "{size}");
            let expected = match size {
                0 => 1,
                size => 100_usize.div_ceil(usize::try_from(size).unwrap()),
            };
            assert_eq!(pages.len(), expected, "{size}");
        }
        assert_eq!(pages(0, 0, 10), [Vec::<u32>::new()]);
    }

    #[test]
    fn a_page_ends_before_it_is_too_large_for_any_client() {
        // 1,400 elements of 3,000 bytes, and a list in which each element is larger than a page.
        let many = pages(1_400, 0, 3_000);
        assert_eq!((many.len(), many.iter().map(Vec::len).sum::<usize>()), (2, 1_400));
        assert_eq!(pages(3, 0, MAX_PAGE_BYTES + 1), [[0], [1], [2]]);
    }

    #[test]
    fn who_goes_or_comes_between_pages_moves_nobody_else() {
        let key = |n: &u32| format!("{n:08}");
        let (page, token) = PageRequest::new(3, "").unwrap().of(vec![10, 20, 30, 40, 50], key, show(1));
        assert_eq!(page.len(), 3);
        // 30, which the token names, was removed; 5 and 35 were added.
        let (page, token) = PageRequest::new(3, &token).unwrap().of(vec![5, 10, 35, 40, 50], key, show(1));
        assert_eq!(page.iter().map(|one| one.version).collect::<Vec<_>>(), [35, 40, 50]);
        assert_eq!(token, "");
    }

    #[test]
    fn what_is_no_page_is_told_with_what_to_send_instead() {
        let said = |size, token: &str| PageRequest::new(size, token).unwrap_err().message();
        assert!(said(-1, "").contains("page_size: must not be negative; leave it out"));
        for token in ["!", "=", "/w", &"A".repeat(MAX_TOKEN + 1)] {
            assert!(
                said(0, token).contains("page_token: is not a token of this list; send next_page_token"),
                "{token}"
            );
        }
    }
}
