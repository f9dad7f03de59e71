import { SegmentedControl, Stack, Text } from '@mantine/core';
import type { UseFormReturnType } from '@mantine/form';

type Role = 'user' | 'admin';

export function emailFault(email: string): string | null {
  return email.includes('@') ? null : 'An address such as ada@example.com';
}

/** A name as the API takes it: what is empty is none. */
export function nameOf(typed: string): string | null {
  return typed.trim() === '' ? null : typed.trim();
}

/** What differs in `after`: what a change of it alone sends, so that others' changes stay. */
export function changesOf<Body extends object>(before: Body, after: Body): Partial<Body> {
  const differs = ([name, value]: [string, unknown]) => value !== before[name as keyof Body];
  return Object.fromEntries(Object.entries(after).filter(differs)) as Partial<Body>;
}

export function RoleInput<Form extends { role: Role }>({ form, labels }: { form: UseFormReturnType<Form>; labels: Record<Role, string> }) {
  return (
    <Stack gap={4}>
      <Text size="sm" fw={500} id="role-label">
        Role
      </Text>
      <SegmentedControl
        aria-labelledby="role-label"
        data={[
          { value: 'user', label: labels.user },
          { value: 'admin', label: labels.admin },
        ]}
        {...form.getInputProps('role')}
      />
    </Stack>
  );
}
