import { Anchor } from '@mantine/core';
import { Link } from 'react-router';

import { shortId } from '../parts/format';
import { useUser } from './queries';

export function UserLink({ id }: { id: string | null | undefined }) {
  const user = useUser(id);
  if (id == null) return <>–</>;
  return (
    <Anchor component={Link} to={`/users/${id}`} size="sm" title={id} style={{ overflowWrap: 'break-word' }}>
      {user?.email ?? shortId(id)}
    </Anchor>
  );
}
