//! Protocols that are wrong, most of them published bugs of others. The simulation must catch every one of them.

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// "It exists" after a create is taken for one's own success.
    ExistsIsMine,
    /// Any failure of a create is taken for success.
    UnknownIsSuccess,
    /// A record is sent although its lanes have moved.
    NoFence,
    /// After a lost create and a "not found" the body is sent again under the next number.
    NextVersionAfterNotFound,
    /// After a lost create and a "not found" the batch is given up and its files deleted.
    DeleteAfterNotFound,
    /// After an "it exists" the batch is given up and its files deleted.
    DeleteAfterExists,
    /// A create in doubt is settled by a listing: what it does not show did not happen.
    ListingIsTruth,
    /// The files of a refused batch are kept, but sent again where the lanes stand now.
    RebaseWhenStale,
    /// A batch begins where the group's offset stands.
    ResumeFromGroup,
    /// A batch begins at its first event and ends after its last, as if no control records lay between.
    FromFirstToLast,
    /// The group is told of a batch when it is sealed.
    AcknowledgeFirst,
    /// No fence while one's own clock says that the lanes were given or confirmed less than ten minutes ago.
    LeaseByClock,
    /// The store overwrites.
    PlainPut,
    /// A keeper deletes old records, and leaves nothing that would say so.
    CutLog,
    /// Old files that no record names are deleted, and no record says so.
    SweepWithoutRecord,
    /// The same, whatever their age.
    SweepWithoutAge,
    /// Files are deleted before the record that gives them up.
    DeleteBeforeSweep,
    /// A rewrite is sent although what it touches has moved.
    RewriteUnfenced,
    /// A writer does not look whether its files were given up.
    IgnoreSweep,
}

impl Wrong {
    pub(crate) const ALL: [Self; 19] = [
        Self::ExistsIsMine,
        Self::UnknownIsSuccess,
        Self::NoFence,
        Self::NextVersionAfterNotFound,
        Self::DeleteAfterNotFound,
        Self::DeleteAfterExists,
        Self::ListingIsTruth,
        Self::RebaseWhenStale,
        Self::ResumeFromGroup,
        Self::FromFirstToLast,
        Self::AcknowledgeFirst,
        Self::LeaseByClock,
        Self::PlainPut,
        Self::CutLog,
        Self::SweepWithoutRecord,
        Self::SweepWithoutAge,
        Self::DeleteBeforeSweep,
        Self::RewriteUnfenced,
        Self::IgnoreSweep,
    ];
}
