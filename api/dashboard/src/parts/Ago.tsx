import { useEffect, useState } from 'react';

import { formatAgo, formatTime } from './format';

/** How long ago something was, which goes on while it is looked at; when it was, to whoever points at it. */
export function Ago({ at }: { at: string | null | undefined }) {
  const [now, setNow] = useState(Date.now);
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), 1_000);
    return () => clearInterval(timer);
  }, []);
  if (at == null) return <>–</>;
  return (
    <time style={{ whiteSpace: 'nowrap' }} dateTime={at} title={formatTime(at)}>
      {formatAgo(at, now)}
    </time>
  );
}
