//! What every step needs: its SQL is one text for both databases where they agree, and they agree on
//! all but triggers, identity and clocks (SQLite takes any name as a column's type).

use sea_orm_migration::{
    SchemaManager,
    sea_orm::{ConnectionTrait as _, DbBackend, DbErr},
};

/// Run `sql` on either database.
pub async fn run(manager: &SchemaManager<'_>, sql: &str) -> Result<(), DbErr> {
    manager.get_connection().execute_unprepared(sql).await?;
    Ok(())
}

/// Run what the two databases say differently.
pub async fn run_either(manager: &SchemaManager<'_>, postgres: &str, sqlite: &str) -> Result<(), DbErr> {
    match manager.get_database_backend() {
        DbBackend::Sqlite => run(manager, sqlite).await,
        _ => run(manager, postgres).await,
    }
}

/// Declare a step named after its file: `up` and `down`.
macro_rules! migration {
    (up($up:ident) $up_body:block down($down:ident) $down_body:block) => {
        pub struct Migration;

        impl $crate::MigrationName for Migration {
            fn name(&self) -> &'static str {
                module_path!().rsplit("::").next().unwrap_or_default()
            }
        }

        #[$crate::async_trait::async_trait]
        impl $crate::MigrationTrait for Migration {
            async fn up(&self, $up: &$crate::SchemaManager) -> Result<(), $crate::DbErr> $up_body

            async fn down(&self, $down: &$crate::SchemaManager) -> Result<(), $crate::DbErr> $down_body
        }
    };
}
pub(crate) use migration;
