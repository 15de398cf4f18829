#!/usr/bin/env bash
# Builds the documents as a book into target/book, or into the directory that is named, and checks all links in it.
#
#   contrib/book.sh [DIR]
#
# Needs mdBook 0.5 (MDBOOK names another command that runs it) and python3. The pages are copied first, as they lie in the
# repository, so that their links to README.md and CONTRIBUTING.md lead somewhere in the book as well.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-${CARGO_TARGET_DIR:-target}/book}")
read -ra mdbook <<<"${MDBOOK:-mdbook}"
command -v "${mdbook[0]}" >/dev/null || { echo "book.sh: ${mdbook[0]} is not installed (cargo install mdbook, or a Debian package after Debian 13)" >&2; exit 1; }

pages=$(mktemp -d)
trap 'rm -rf "$pages"' EXIT
mkdir "$pages/src"
cp book.toml "$pages"
cp -r README.md CONTRIBUTING.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE docs "$pages/src"
# Each decision is a page below their list.
{
  while IFS= read -r line; do
    printf '%s\n' "$line"
    [[ $line != *"(decisions/README.md)" ]] || for page in docs/decisions/[0-9]*.md; do
      printf '  - [%s](decisions/%s)\n' "$(sed -n '1s/^# //p' "$page")" "$(basename "$page")"
    done
  done <docs/SUMMARY.md
} | sed -e 's#](#](docs/#' -e 's#](docs/\.\./#](#' >"$pages/src/SUMMARY.md"
for page in docs/*.md; do
  grep -q "(${page#docs/})" docs/SUMMARY.md || [ "$page" = docs/SUMMARY.md ] || { echo "book.sh: $page is not in docs/SUMMARY.md" >&2; exit 1; }
done
rm "$pages/src/docs/SUMMARY.md"
# A directory's page is its index, also where others link to it.
find "$pages/src" -name README.md -execdir mv {} index.md \;
find "$pages/src" -name '*.md' -exec sed -i -E 's#(\]\([^)]*)\bREADME\.md#\1index.md#' {} +
said=$("${mdbook[@]}" build --dest-dir "$out" "$pages" 2>&1) || { echo "$said" >&2; exit 1; }
! grep -E '\[(WARN|ERROR)\]' <<<"$said" || exit 1

python3 - "$out" <<'P'
import html.parser, pathlib, sys, urllib.parse
root = pathlib.Path(sys.argv[1]).resolve()

class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.ids, self.links = set(), []
        self.feed(text)
    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.ids.add(value)
            elif name in ("href", "src") and tag != "link" and value:
                self.links.append(value)

# What mdBook adds of its own: one page of everything, and one for what is not found.
pages = {file: Page(file.read_text()) for file in root.rglob("*.html") if file.name not in ("print.html", "404.html", "toc.html")}
broken = []
for file, page in pages.items():
    for link in page.links:
        url = urllib.parse.urlsplit(link)
        if url.scheme or url.netloc:
            continue
        target = (file.parent / urllib.parse.unquote(url.path)).resolve() if url.path else file
        if target.is_dir():
            target /= "index.html"
        part = urllib.parse.unquote(url.fragment)
        if not target.exists() or (target in pages and part and part not in pages[target].ids):
            broken.append(f"{file.relative_to(root)}: {link}")
if broken:
    sys.exit("book.sh: links that lead nowhere:\n" + "\n".join(sorted(set(broken))))
print(f"{len(pages)} pages")
P
echo "wrote $out/index.html"
