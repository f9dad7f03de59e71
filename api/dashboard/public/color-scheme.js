// Before the page is painted: what was chosen here, else what the system prefers. A file of its own, since the
// page's policy lets no inline script run.
{
  const chosen = window.localStorage.getItem('mantine-color-scheme-value') ?? 'auto';
  const prefersDark = window.matchMedia('(prefers-color-scheme: dark)').matches;
  const scheme = chosen === 'auto' ? (prefersDark ? 'dark' : 'light') : chosen;
  document.documentElement.setAttribute('data-mantine-color-scheme', scheme);
}
