//! The page of a directory. Every name in it is escaped: a store path may hold names that look like HTML.

use std::fmt::Write as _;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};

use crate::nar_body::{BodyAborted, NarBody};
use crate::store_files::{DirectoryRow, EntryPath, RowKind, StoreDirectory};

/// The page of the directory at `path` in a store path whose URL is `root` (`/serve/<hash part>`); `title` is its full path.
pub(crate) fn render(root: &str, path: &EntryPath, title: &str, directory: StoreDirectory) -> NarBody {
    let mut base = root.to_owned();
    for name in path.names() {
        base.push('/');
        encode_into(&mut base, name);
    }
    let title = escape(title.as_bytes());
    let mut head = format!(
        "<!DOCTYPE html>\n<html><head><meta charset=\"utf-8\"><title>Index of {title}</title></head>\n\
         <body><h1>Index of {title}</h1>\n<table>\n"
    );
    // Above the store path there is nothing to show.
    if let Some((parent, _)) = base.rsplit_once('/').filter(|_| !path.names().is_empty()) {
        writeln!(head, "<tr><td><a href=\"{parent}/\">../</a></td><td></td></tr>").expect("a String takes everything");
    }
    let rows = render_rows(base, directory.rows);
    let first = stream::once(async { Ok(Bytes::from(head)) });
    let last = stream::once(async { Ok(Bytes::from_static(b"</table></body></html>\n")) });
    Box::pin(first.chain(rows).chain(last))
}

fn render_rows(
    base: String,
    rows: impl Stream<Item = Result<Vec<DirectoryRow>, BodyAborted>> + Send,
) -> impl Stream<Item = Result<Bytes, BodyAborted>> + Send {
    rows.map(move |rows| {
        let mut text = String::new();
        for row in rows? {
            render_row(&mut text, &base, &row);
        }
        Ok(Bytes::from(text))
    })
}

fn render_row(text: &mut String, base: &str, row: &DirectoryRow) {
    let name = escape(&row.name);
    let mut link = format!("{base}/");
    encode_into(&mut link, &row.name);
    let written = match &row.kind {
        RowKind::File { size_bytes } => {
            writeln!(text, "<tr><td><a href=\"{link}\">{name}</a></td><td>{size_bytes}</td></tr>")
        }
        RowKind::Directory => writeln!(text, "<tr><td><a href=\"{link}/\">{name}/</a></td><td></td></tr>"),
        RowKind::Symlink { target } => {
            writeln!(text, "<tr><td><a href=\"{link}\">{name}</a></td><td>-&gt; {}</td></tr>", escape(target))
        }
        // No link: a pipe or a device is never opened.
        RowKind::Special => writeln!(text, "<tr><td>{name}</td><td></td></tr>"),
    };
    written.expect("a String takes everything");
}

/// The text for HTML; what is not UTF-8 becomes a replacement character.
fn escape(text: &[u8]) -> String {
    let mut escaped = String::with_capacity(text.len());
    for letter in String::from_utf8_lossy(text).chars() {
        match letter {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // A name must not turn the rest of its line around.
            letter if letter.is_control() || matches!(letter, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') => {
                escaped.push('\u{fffd}');
            }
            letter => escaped.push(letter),
        }
    }
    escaped
}

/// Percent-encodes all but what a URL never gives a meaning to (RFC 3986, section 2.3).
fn encode_into(url: &mut String, name: &[u8]) {
    for &byte in name {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            url.push(char::from(byte));
        } else {
            write!(url, "%{byte:02X}").expect("a String takes everything");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use narmesh_protocol::StorePath;

    #[tokio::test]
    async fn names_that_look_like_html_are_only_names() {
        let row = |name: &[u8], kind| DirectoryRow { name: name.to_vec(), kind };
        let rows = vec![
            row(b"<script>alert(1)</script>", RowKind::File { size_bytes: 7 }),
            row(b"\" onload=\"x", RowKind::Directory),
            row(b"l'\xff", RowKind::Symlink { target: b"</table>\n".to_vec() }),
            row("\u{202e}x".as_bytes(), RowKind::Special),
        ];
        let directory = StoreDirectory {
            path: StorePath::parse("0c0yaa1b2d3f4g5h6i7j8k9l0m1n2p3q-x").unwrap(),
            rows: Box::pin(stream::iter([Ok(rows)])),
        };
        let path = EntryPath::parse("/%3Cb%3E").unwrap();
        let chunks: Vec<_> = render("/serve/x", &path, "/nix/store/x/<b>", directory).collect().await;
        let page: String =
            chunks.into_iter().map(|chunk| String::from_utf8(chunk.unwrap().to_vec()).unwrap()).collect();
        assert!(!page.contains("<script") && !page.contains("\" onload") && !page.contains("<b>"), "{page}");
        assert!(page.contains("<a href=\"/serve/x/%3Cb%3E/%3Cscript%3Ealert%281%29%3C%2Fscript%3E\">"), "{page}");
        assert!(page.contains("<a href=\"/serve/x/%3Cb%3E/l%27%FF\">l&#39;\u{fffd}</a>"), "{page}");
        assert!(page.contains("<a href=\"/serve/x/\">../</a>"), "{page}");
        assert_eq!(page.matches("</table>").count(), 1);
        assert!(!page.contains('\u{202e}'));
    }
}
