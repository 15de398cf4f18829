//! The pages: what is asked for, and its frame. Each page has a file of its own.
//!
//! maud escapes what is markup, and [`escaped_lines`] what would reorder text, or end a line of an event.
//!
//! Bounds: a page shows [`ROWS`] rows of a table and leads to the next ones, so that a thousand machines and ten thousand
//! requests make no page longer.

mod machines;
mod overview;
mod parts;
mod path;
mod requests;
mod sources;
mod warnings;

use super::DashboardSource;
use crate::describe::escaped_lines;
use crate::status::Status;
use crate::status::log::LogOutcome;
use clap::ValueEnum as _;
use maud::{DOCTYPE, Markup, html};
use url::form_urlencoded;

/// Rows of a table that a page shows.
pub(super) const ROWS: usize = 100;
/// Most pages of a table: those of ten thousand requests.
const PAGES_MAX: usize = 100;
/// Most characters of what is searched for.
const SEARCHED_MAX: usize = 300;

/// How everything looks.
pub(super) const STYLE: &str = include_str!("style.css");
/// What keeps an open page up to date.
pub(super) const SCRIPT: &str = include_str!("script.js");
/// The icon of the pages.
pub(super) const ICON: &str = include_str!("icon.svg");

/// What is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum View {
    /// Is it working?
    Overview,
    /// The peers.
    Machines(Search),
    /// The NARs that Nix asked for.
    Requests(Search),
    /// One path.
    Path(String),
    /// Upstream caches, and what came from whom.
    Sources,
    /// What somebody has to do.
    Warnings,
}

/// What of a table is shown.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Search {
    /// Which page, from 0.
    page: usize,
    /// What its rows have to contain: a part of a name, or a path.
    text: String,
    /// How its requests have to have ended.
    outcome: Option<LogOutcome>,
    /// Who has to have had a part in its requests.
    source: String,
}

impl View {
    /// Parses the rest of a path, and a query.
    pub(super) fn parse(page: &str, query: &str) -> Option<Self> {
        Some(match page {
            "" => Self::Overview,
            "machines" => Self::Machines(Search::parse(query)),
            "requests" => Self::Requests(Search::parse(query)),
            "sources" => Self::Sources,
            "warnings" => Self::Warnings,
            page => {
                let path = page.strip_prefix("path/")?;
                // A store path consists of these; what else is asked for is none.
                let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "+-._?=".contains(letter);
                (!path.is_empty() && path.len() <= 250 && path.chars().all(is_plain))
                    .then(|| Self::Path(path.to_owned()))?
            }
        })
    }

    /// The address of the view below the session's.
    fn address(&self) -> String {
        match self {
            Self::Overview => String::new(),
            Self::Machines(search) => format!("machines{}", search.query(search.page)),
            Self::Requests(search) => format!("requests{}", search.query(search.page)),
            Self::Path(path) => format!("path/{path}"),
            Self::Sources => "sources".to_owned(),
            Self::Warnings => "warnings".to_owned(),
        }
    }

    fn title(&self) -> &str {
        match self {
            Self::Overview => "Overview",
            Self::Machines(_) => "Machines",
            Self::Requests(_) => "Requests",
            Self::Path(path) => path,
            Self::Sources => "Sources",
            Self::Warnings => "Warnings",
        }
    }

    /// Whether it is worth being kept up to date while it is open.
    fn is_live(&self) -> bool {
        match self {
            Self::Overview | Self::Machines(_) | Self::Requests(_) | Self::Sources => true,
            Self::Path(_) | Self::Warnings => false,
        }
    }
}

impl Search {
    fn parse(query: &str) -> Self {
        let mut search = Self::default();
        for (name, value) in form_urlencoded::parse(query.as_bytes()) {
            let text = || value.trim().chars().take(SEARCHED_MAX).collect();
            match &*name {
                "page" => search.page = value.parse::<usize>().unwrap_or(0).min(PAGES_MAX - 1),
                "q" => search.text = text(),
                "source" => search.source = text(),
                "outcome" => search.outcome = LogOutcome::from_str(&value, false).ok(),
                _ => {}
            }
        }
        search
    }

    /// The query that leads to another page of the same.
    fn query(&self, page: usize) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let outcome = self.outcome.and_then(|outcome| outcome.to_possible_value());
        let outcome = outcome.as_ref().map_or("", |value| value.get_name());
        let pairs = [("q", self.text.as_str()), ("source", &self.source), ("outcome", outcome)];
        for (name, value) in pairs.into_iter().filter(|(_, value)| !value.is_empty()) {
            query.append_pair(name, value);
        }
        if page > 0 {
            query.append_pair("page", &page.to_string());
        }
        let query = query.finish();
        if query.is_empty() { query } else { format!("?{query}") }
    }
}

/// The address, below the session's, of the page that a link says it leads to: the overview, unless it says another one.
pub(super) fn wanted_address(query: &str) -> String {
    let wanted = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "to");
    wanted.and_then(|(_, page)| View::parse(&page, "")).map_or_else(String::new, |view| view.address())
}

/// The whole page.
pub(super) async fn render<S: DashboardSource>(source: &S, view: &View, base: &str) -> anyhow::Result<String> {
    let status = source.read_status().await?;
    let part = body(source, view, base, &status).await?;
    Ok(escaped_lines(&frame(&status, view, base, &part).into_string()))
}

/// The part of the page that changes.
pub(super) async fn render_part<S: DashboardSource>(source: &S, view: &View, base: &str) -> anyhow::Result<String> {
    let status = source.read_status().await?;
    Ok(escaped_lines(&body(source, view, base, &status).await?.into_string()))
}

async fn body<S: DashboardSource>(source: &S, view: &View, base: &str, status: &Status) -> anyhow::Result<Markup> {
    Ok(match view {
        View::Overview => overview::page(status, &requests::latest(source, 8)?, base),
        View::Machines(search) => machines::page(status, search, base),
        View::Requests(search) => requests::page(source, search, base)?,
        View::Path(path) => path::page(source, path, base).await?,
        View::Sources => sources::page(status),
        View::Warnings => warnings::page(status),
    })
}

/// A page that says why there is none.
pub(super) fn render_error(base: &str, why: &str) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            (head("Not shown", base, false))
            body {
                main #main {
                    h1 { "Not shown" }
                    p { (why) }
                    p { a href=(base) { "Overview" } }
                }
            }
        }
    };
    escaped_lines(&page.into_string())
}

fn head(title: &str, base: &str, is_live: bool) -> Markup {
    html! {
        head {
            meta charset="utf-8";
            meta name="viewport" content="width=device-width, initial-scale=1";
            meta name="color-scheme" content="light dark";
            title { (title) " · narmesh" }
            link rel="icon" type="image/svg+xml" href={ (base) "icon.svg" };
            link rel="stylesheet" href={ (base) "style.css" };
            @if is_live {
                noscript { meta http-equiv="refresh" content="5"; }
                script src={ (base) "script.js" } defer {}
            }
        }
    }
}

fn frame(status: &Status, view: &View, base: &str, part: &Markup) -> Markup {
    let warnings = warnings::find(status).len();
    let pages = [
        ("", "Overview", matches!(view, View::Overview)),
        ("machines", "Machines", matches!(view, View::Machines(_))),
        ("requests", "Requests", matches!(view, View::Requests(_) | View::Path(_))),
        ("sources", "Sources", matches!(view, View::Sources)),
        ("warnings", "Warnings", matches!(view, View::Warnings)),
    ];
    let live = view.is_live().then(|| format!("{base}live/{}", view.address()));
    html! {
        (DOCTYPE)
        html lang="en" {
            (head(view.title(), base, live.is_some()))
            body {
                a.skip href="#main" { "Skip to the content" }
                header {
                    a.mark href=(base) { img src={ (base) "icon.svg" } alt="" width="20" height="20"; "narmesh" }
                    nav aria-label="Pages" {
                        @for (address, title, is_here) in pages {
                            a href={ (base) (address) } aria-current=[is_here.then_some("page")] {
                                (title)
                                @if address == "warnings" && warnings > 0 {
                                    " " span.count { (warnings) span.hidden { " things to do" } }
                                }
                            }
                        }
                    }
                    @if live.is_some() {
                        span.live {
                            span #live-state role="status" {}
                            button #pause type="button" aria-pressed="false" hidden { "Pause" }
                        }
                    }
                }
                main #main tabindex="-1" {
                    h1 { (view.title()) }
                    div data-live=[live] { (part) }
                }
                footer {
                    (status.software) ", up " (crate::status::text::duration(status.uptime_s)) " · "
                    span.mono { (status.peer_id) }
                }
            }
        }
    }
}
