//! What somebody has to look at, and what to do.

use crate::status::Status;
use crate::status::warnings::{Warning, find_warnings};
use maud::{Markup, html};

pub(super) fn find(status: &Status) -> Vec<Warning> {
    find_warnings(status)
}

pub(super) fn page(status: &Status) -> Markup {
    let warnings = find(status);
    html! {
        @if warnings.is_empty() {
            p.empty { "Nothing to do." }
        } @else {
            ul.warnings {
                @for warning in &warnings {
                    li { h2 { (warning.what) } p { (warning.todo) } }
                }
            }
        }
    }
}
